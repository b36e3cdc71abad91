"""`bench cluster`: what it counts, what it refuses, and whole runs with fake nodes and a fake router."""

import io
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from bench.__main__ import app
from bench.cluster import measure, nodes, routers, show
from bench.cluster.accounting import ALONE, Counts, Outage, Run, compared, outage, times
from bench.cluster.routers import Behind, Choice
from bench.records import BenchError
from bench.servers import Spec
from tests.bench.fakes import record

HERE = Path(__file__).parent
SMG = Choice("smg", "cache_aware")
NODES = [Behind(url="http://127.0.0.1:1"), Behind(url="http://127.0.0.1:2")]

counts = st.builds(Counts, *[st.integers(0, 1_000_000)] * 3)


def run(*nodes: Counts, policy: str = "smg:cache_aware", **further: Any) -> Run:
    measures = times([record(1.0, 2.0, end=3.0, tokens=2)])
    return Run(policy=policy, workload="shared", nodes=nodes, measures=measures, **further)


# -- the numbers -------------------------------------------------------------------------------------------------------


@given(st.lists(counts, min_size=1, max_size=8))
def test_all_nodes_together_have_done_what_each_has(each: list[Counts]) -> None:
    one = run(*each)
    assert one.total.requests == sum(node.requests for node in each)
    if one.busiest_share is None:
        assert not one.total.requests
    else:
        assert 1 / len(each) <= one.busiest_share <= 1


@given(counts, counts)
def test_counters_of_a_new_process_count_from_zero(before: Counts, more: Counts) -> None:
    after = Counts(*(getattr(before, name) + getattr(more, name) for name in Counts.__slots__))
    assert after.since(before) == more
    assert Counts(0, 0, 0).since(before) == Counts(0, 0, 0)


def test_the_least_work_has_a_copy_of_the_prefix_for_each_further_node_that_served() -> None:
    alone = run(Counts(48, 35_040, 1571), policy=ALONE)
    both = compared(run(Counts(25, 18_250, 1158), Counts(23, 16_790, 1122)), alone, 712)
    assert both.least_tokens == 1571 + 712
    assert both.work_ratio == pytest.approx(2280 / 2283)
    assert both.total.hit_rate == pytest.approx(1 - 2280 / 35_040)
    assert both.busiest_share == pytest.approx(25 / 48)
    idle = compared(run(Counts(48, 35_040, 1571), Counts()), alone, 712)
    assert idle.least_tokens == 1571


@pytest.mark.parametrize(
    ("busy", "computed", "holds"), [(60, 105, True), (61, 105, False), (60, 106, False), (50, 1, True)]
)
def test_a_policy_holds_if_it_computes_little_and_balances(busy: int, computed: int, holds: bool) -> None:
    two = run(Counts(busy, 1000, computed), Counts(100 - busy, 1000, 0), least_tokens=100)
    assert two.holds is holds
    assert run(Counts(busy, 1000, computed), least_tokens=100).holds is None
    assert run(Counts(busy, 1000, computed), Counts()).holds is None


def test_the_deviation_is_that_of_tokens_or_of_the_hit_rate() -> None:
    measured = Counts(10, 1000, 200)
    assert run(measured, predicted=Counts(10, 1000, 220)).deviation == pytest.approx(0.1)
    assert run(measured, predicted=Counts(10, 1000, 400)).deviation == pytest.approx(1.0)
    assert run(measured, predicted=Counts(10, 1000, 200)).deviation == 0
    assert run(measured).deviation is None


def test_an_outage_ends_with_the_last_new_request_that_fails() -> None:
    lost = record(1.0, start=0.0, end=5.0, error="the stream ended early")
    refused = record(start=5.5, end=5.6, error="HTTP 503")
    served = record(7.0, start=6.0, end=8.0)
    later = record(9.0, start=8.5, end=10.0)
    kept = record(4.0, start=3.0, end=9.0)
    assert outage([lost, refused, served, later, kept], 5.0) == Outage(1, 1, 1.0, 2.0)
    assert outage([lost, later, served], 5.0) == Outage(1, 0, 0.0, 2.0)
    assert outage([lost, refused], 5.0) == Outage(1, 1, None, None)


def test_counters_are_read_from_metrics() -> None:
    text = """# TYPE vllm:request_success counter
vllm:request_success_total{model_name="a",finished_reason="length"} 3.0
vllm:request_success_total{model_name="a",finished_reason="stop"} 2.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{model_name="a"} 70.0
# TYPE cortex_prefill_tokens counter
cortex_prefill_tokens_total{model_name="a"} 41.0
"""
    assert nodes.counts_of(text) == Counts(5, 70, 41)
    assert nodes.counts_of("") == Counts()


def test_the_table_says_whether_a_policy_holds() -> None:
    screen = Console(file=io.StringIO(), width=250)
    good = run(Counts(5, 50, 10), Counts(5, 50, 10), least_tokens=20, predicted=Counts(10, 100, 21))
    bad = run(Counts(9, 90, 10), Counts(1, 10, 10), least_tokens=20, troubles=("HTTP 500: oops",))
    show.show([run(Counts(10, 100, 15), policy=ALONE), good, bad], screen)
    printed = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "holds" in printed
    assert "does NOT hold" in printed
    assert "5.0%" in printed
    assert "90.0%" in printed
    assert "HTTP 500: oops" in printed
    assert "served again" not in printed  # no node ended


# -- routers -----------------------------------------------------------------------------------------------------------


def test_policies_name_a_router() -> None:
    chosen = routers.choices("smg:round_robin,vllm-router:kv_aware,smg:round_robin")
    assert [str(each) for each in chosen] == ["smg:round_robin", "vllm-router:kv_aware"]
    assert [each.needs_events for each in chosen] == [False, True]
    for wrong in ("", "smg", "smg:", "haproxy:roundrobin"):
        with pytest.raises(BenchError, match="--policies"):
            routers.choices(wrong)


def test_a_missing_router_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"^smg is not installed: pip install .*, or use --router-folder$"):
        routers.find("smg", None)
    with pytest.raises(BenchError, match=f"^smg is not in {tmp_path}$"):
        routers.find("smg", tmp_path)
    (tmp_path / "smg").write_text("")
    assert routers.find("smg", tmp_path) == tmp_path / "smg"


def test_smg_has_the_flags_of_the_docs_and_the_users_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match=r"cannot read deploy/smg\.flags"):
        routers.spec(SMG, Path("smg"), 5, 6, NODES, ())
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/smg.flags").write_text("# a comment\n--policy random\n--balance-abs-threshold 3 # why\n")
    command = routers.spec(SMG, Path("smg"), 5, 6, NODES, ("--balance-abs-threshold", "4")).command
    assert command[:2] == ("smg", "launch")
    assert command[-4:] == ("--policy", "cache_aware", "--balance-abs-threshold", "4")
    assert command[command.index("--worker-urls") + 1 :][:2] == tuple(node.url for node in NODES)
    found = routers.thresholds(SMG, ("--balance-rel-threshold", "2"))
    assert (found.absolute, found.relative, found.match) == (3, 2, 0.3)


def test_vllm_router_hears_the_events_of_each_node() -> None:
    choice = Choice("vllm-router", "kv_aware")
    behind = [
        Behind(url=node.url, events="tcp://127.0.0.1:7", replay="tcp://127.0.0.1:8", model="tiny") for node in NODES
    ]
    command = routers.spec(choice, Path("vllm-router"), 5, 6, behind, ()).command
    assert command.count("--kv-event-source") == 2
    assert command[command.index("--kv-event-model") + 1] == "tiny"
    assert f"{NODES[1].url}=tcp://127.0.0.1:7" in command
    assert f"{NODES[1].url}=tcp://127.0.0.1:8" in command


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a router. Nodes are fake too."""

    def node(common: object, port: int, name: str, flags: tuple[str, ...]) -> Spec:
        command = (sys.executable, str(HERE / "fake_node.py"), str(port), *(flags if name == "node1" else ()))
        return Spec(name=name, url=f"http://127.0.0.1:{port}/v1", command=command)

    router = tmp_path / "smg"
    router.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_router.py"} "$@"\n')
    router.chmod(0o755)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/smg.flags").write_text("--policy cache_aware")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "cortex", node)
    monkeypatch.setattr(measure, "REPORT_SECONDS", 0.0)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *arguments])


def test_policies_are_compared_with_one_node(fakes: Path, model_path: str) -> None:
    out = fakes / "cluster.json"
    result = invoke(
        *("--router-folder", str(fakes), "--model", model_path, "--policies", "smg:round_robin", "--out", str(out)),
        *("--workloads", "shared", "--users", "2", "--requests", "2"),
    )
    assert result.exit_code == 0, result.output
    alone, both = orjson.loads(out.read_bytes())["runs"]
    assert alone["policy"] == ALONE
    assert (alone["num_nodes"], both["num_nodes"]) == (1, 2)
    assert alone["total"]["requests"] == both["total"]["requests"] == 8
    assert alone["total"]["computed_tokens"] == 10 + 7  # the first request is new to the node
    assert both["total"]["computed_tokens"] == 2 * (10 + 3)
    assert both["least_tokens"] > alone["total"]["computed_tokens"] + 500  # and the prefix of the texts
    assert both["busiest_share"] == 0.5
    assert both["measures"]["errors"] == 0
    assert both["predicted"]["requests"] == 8
    assert "smg:round_robin" in result.stdout


def test_a_killed_node_loses_only_what_ran_on_it(fakes: Path, model_path: str) -> None:
    result = invoke(
        *("--router-folder", str(fakes), "--model", model_path, "--policies", "smg:round_robin"),
        *("--workloads", "shared", "--users", "2", "--requests", "3", "--node-flags", "hangs", "--kill", "0.2"),
    )
    assert result.exit_code == 0, result.output
    (run,) = orjson.loads(result.stdout.splitlines()[-1])
    assert run["outage"]["failed_running"] + run["outage"]["failed_new"] == run["measures"]["errors"]
    assert run["outage"]["failed_running"] >= 1
    assert run["outage"]["failed_new"] == 0
    assert run["nodes"][0]["requests"] == 0
    assert run["nodes"][1]["requests"] == 12 - run["measures"]["errors"]
    assert "served again" in result.stdout


def test_a_load_that_ends_before_the_signal_is_an_error(fakes: Path, model_path: str) -> None:
    result = invoke(
        *("--router-folder", str(fakes), "--model", model_path, "--policies", "smg:round_robin"),
        *("--workloads", "shared", "--users", "1", "--requests", "1", "--drain", "600"),
    )
    assert result.exit_code == 2
    assert "ended before --kill or --drain" in result.output


def test_a_simulation_gives_the_same_numbers_again(fakes: Path) -> None:
    out = fakes / "simulated.json"
    arguments = ("--simulate", "3", "--workloads", "shared", "--users", "3", "--prompts", "2")
    result = invoke(*arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert invoke(*arguments).stdout == result.stdout
    runs = orjson.loads(out.read_bytes())["runs"]
    assert [run["num_nodes"] for run in runs] == [1, 2, 2, 2, 3, 3, 3]
    assert [run["policy"] for run in runs[:4]] == [
        *(ALONE, "smg:round_robin", "smg:cache_aware", "vllm-router:kv_aware")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "haproxy:roundrobin"], "the routers are smg, vllm-router"),
        (["--workloads", "burst"], "must be one of shared, multiturn, trace"),
        (["--workloads", ","], "--workloads names no workload"),
        (["--workloads", "trace"], "the workload trace needs --trace FILE"),
        (["--kill", "1", "--drain", "2"], "must leave a node"),
        (["--simulate", "2", "--kill", "1"], "do not apply to --simulate"),
        (["--simulate", "2", "--policies", "smg:power_of_two"], "can be simulated are round_robin"),
        (["--prompts", "2"], "--prompts needs --simulate"),
        (["--router-flags", "smg"], "use NAME=VALUE"),
        (["--router-flags", "haproxy=--daemon"], "--router-flags haproxy"),
        (["--router-folder", "nowhere"], "smg is not in nowhere"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(fakes: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
