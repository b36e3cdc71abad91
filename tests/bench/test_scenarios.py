"""What each policy reaches in the scenarios of tenants that share a machine."""

from functools import cache
from pathlib import Path
from random import Random

import orjson
import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.simulation.machine import chunk_seconds
from bench.simulation.scenarios import SCENARIOS, Limit, Outcome, Setup, questions, ttft
from bench.simulation.service import service
from bench.simulation.simulator import Tenant, closed_loop, open_loop
from bench.stats import Measures
from scheduler.classes import GUARANTEED


@cache
def outcome(scenario: str, policy: str) -> Outcome:
    return SCENARIOS[scenario].run(Setup(policy=policy))


def missed(scenario: str, policy: str) -> dict[str, float | None]:
    measures = outcome(scenario, policy).measures
    return {each.measure: measures[each.measure] for each in SCENARIOS[scenario].limits if not each.is_met(measures)}


@pytest.mark.parametrize("scenario", ["flood", "list", "interactive", "lines"])
def test_with_first_come_first_served_a_stranger_waits_for_the_queue_of_others(scenario: str) -> None:
    measures = outcome(scenario, "first-come").measures
    ratio, worst = measures["ttft_p50_ratio"], measures["ttft_max_s"]
    assert ratio is not None
    assert worst is not None
    assert ratio > 100
    assert worst > 20
    assert "throughput_ratio" not in missed(scenario, "first-come")


def test_with_first_come_first_served_shares_follow_the_number_of_requests() -> None:
    assert set(missed("weights", "first-come")) == {"tokens_ratio", "gap_ratio"}
    assert set(missed("equal", "first-come")) == {"jain"}


def test_first_come_first_served_is_the_baseline_of_locality() -> None:
    measures = outcome("prefixes", "first-come").measures
    assert missed("prefixes", "first-come") == {}
    assert measures["throughput_ratio"] == 1.0
    hit_rate = measures["hit_rate"]
    assert hit_rate is not None
    assert hit_rate > 0.85  # each system prompt is computed once


def test_the_stranger_is_idle_but_for_its_own_questions() -> None:
    measures = outcome("flood", "first-come").measures
    idle = measures["idle_ttft_s"]
    assert idle == pytest.approx(0.075, abs=0.005)


def test_a_limit_includes_both_ends() -> None:
    limit = Limit("x", at_least=1.0, at_most=2.0)
    cases: list[tuple[float | None, bool]] = [(0.9, False), (1.0, True), (2.0, True), (2.1, False), (None, False)]
    for value, is_met in cases:
        measures: Measures = {"x": value}
        assert limit.is_met(measures) is is_met


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_with_fair_shares_every_limit_is_met(scenario: str) -> None:
    assert missed(scenario, "fair") == {}


@pytest.mark.parametrize("scenario", ["flood", "lines"])
def test_in_a_pool_a_stranger_waits_no_longer_than_in_lanes(scenario: str) -> None:
    measures = SCENARIOS[scenario].run(Setup(policy="fair", lanes=False)).measures
    assert [limit.measure for limit in SCENARIOS[scenario].limits if not limit.is_met(measures)] == []


@pytest.mark.parametrize("lanes", [True, False])
@pytest.mark.parametrize("priority", [0, 1])
def test_a_stranger_waits_for_one_step_beside_floods_of_two_classes(lanes: bool, priority: int) -> None:
    simulator = Setup(policy="fair", lanes=lanes).simulator()
    closed_loop(simulator, Tenant("low", priority=2), 64, questions((60, 32), Random("low")))
    closed_loop(simulator, Tenant("flood"), 64, questions((60, 32), Random("flood")), begin=5.0)
    stranger = Tenant("stranger", priority=priority)
    open_loop(simulator, stranger, range(15, 60), questions((12, 8), Random("stranger")))
    simulator.run(60.0)
    waits = [ttft(each, simulator.now) for each in simulator.requests if each.tenant == "stranger"]
    assert max(waits) < chunk_seconds(64) + 0.1, "the rest of a step, and then one with its own prompt"


def test_a_lower_class_is_served_its_guaranteed_share_beside_a_flood_of_a_higher_one() -> None:
    simulator = Setup(policy="fair").simulator()
    high, low = Tenant("high", priority=0), Tenant("low", priority=2)
    closed_loop(simulator, high, 64, questions((60, 32), Random("high")))
    closed_loop(simulator, low, 64, questions((60, 32), Random("low")), begin=15.0)
    simulator.run(135.0)
    since = [step for step in simulator.steps if step.end > 15.0]
    served, others = (sum(service(since, tenant.name)) for tenant in (low, high))
    assert 0.9 * GUARANTEED <= served / others <= 1.5 * GUARANTEED
    waits = [request.ttft for request in simulator.requests if request.tenant == "low" and request.ttft is not None]
    assert min(waits) < 15.0


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_files(tmp_path: Path) -> None:
    out, plot = tmp_path / "simulated.json", tmp_path / "weights.png"
    command = ["simulate", "--scenario", "weights", "--policy", "first-come", "--seconds", "20"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--plot", str(plot)])
    assert result.exit_code == 1  # a limit is not met
    assert "tokens_ratio" in result.stdout
    assert "NOT met" in result.stdout
    document = orjson.loads(out.read_bytes())
    assert (document["policy"], document["kv_layout"]) == ("first-come", "lanes")
    assert document["scenarios"] == orjson.loads(result.stdout.splitlines()[-1])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_exit_code_is_0_if_all_limits_are_met() -> None:
    command = ["simulate", "--scenario", "prefixes", "--policy", "first-come", "--seconds", "20"]
    assert CliRunner().invoke(app, command).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--policy", "luck"], "--policy luck"),
        (["--scenario", "peace"], "--scenario peace"),
        (["--scenario", "flood", "--seconds", "20", "--plot", "flood.png"], "--plot needs"),
    ],
)
def test_wrong_options_are_reported_in_one_line(arguments: list[str], error: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
