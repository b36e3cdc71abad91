"""Virtual clients of the real scheduler, in virtual time."""

from itertools import count, repeat
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.shares import service_bound
from bench.simulation.machine import POLICIES, VirtualRunner, chunk_seconds, scheduler_for
from bench.simulation.scenarios import questions
from bench.simulation.service import most_overtaken
from bench.simulation.simulator import LATENCY, Prompt, Simulator, Tenant, batch, closed_loop, lines, open_loop
from scheduler.fair import QUANTUM

A, B = Tenant("A"), Tenant("B")


def simulator() -> Simulator:
    runner = VirtualRunner()
    return Simulator(scheduler_for("first-come", runner.clock), runner)


def test_one_request_takes_the_time_of_its_steps() -> None:
    idle = simulator()
    open_loop(idle, A, [3.0], iter([Prompt([*range(64)], 5)]))
    idle.run(10.0)
    (request,) = idle.requests
    assert request.submitted == 3.0
    assert request.ttft == pytest.approx(chunk_seconds(64), rel=0.02)
    assert chunk_seconds(64) == pytest.approx(0.25, rel=0.01)
    assert request.ended is not None
    assert (request.ended - 3.0 - chunk_seconds(64)) / 4 == pytest.approx(0.011, rel=0.1)
    assert request.num_tokens == 5
    assert idle.now < 4.0  # nothing else happens


def test_a_step_of_32_answers_takes_as_long_as_on_the_machine() -> None:
    full = simulator()
    closed_loop(full, A, 32, questions((60, 200), Random(0)))
    full.run(30.0)
    decodes = [step.seconds for step in full.steps if step.decode.get("A") == 32]
    assert len(decodes) > 50
    assert sorted(decodes)[len(decodes) // 2] == pytest.approx(0.15, rel=0.05)
    assert not any(step.decode and step.prefill for step in full.steps)  # never mixed in lanes


def test_a_closed_loop_keeps_its_requests_in_flight() -> None:
    loop = simulator()
    closed_loop(loop, A, 3, repeat(Prompt([1, 2, 3], 4)), begin=2.0)
    loop.run(6.0)
    requests = loop.requests
    assert [request.submitted for request in requests[:3]] == [2.0] * 3
    ends = sorted(request.ended for request in requests if request.ended is not None)
    assert [request.submitted for request in requests[3:]] == pytest.approx(
        [end + LATENCY for end in ends[: len(requests) - 3]]
    )


def test_a_list_is_many_sequences_at_once() -> None:
    full = simulator()
    batch(full, A, [Prompt([1, 2, number], 2) for number in range(100)], due=1.0)
    full.drain(1000)
    assert len(full.requests) == 100
    assert all(request.num_tokens == 2 for request in full.requests)
    assert {request.submitted for request in full.requests} == {1.0}


@pytest.mark.parametrize(("num_others", "num_lines"), [(0, 32), (30, 2), (32, 1), (64, 1)])
def test_lines_take_the_room_that_others_leave(num_others: int, num_lines: int) -> None:
    shared = simulator()
    batch(shared, B, [Prompt([1, 2, number], 4000) for number in range(num_others)])
    lines(shared, A, (Prompt([*range(100 * number, 100 * number + 40)], 4) for number in count(1)))
    most = 0
    for tenth in range(1, 200):
        shared.run(tenth / 10)
        running = [each for each in shared.requests if each.tenant == "A" and each.ended is None]
        assert shared.num_active == num_others + len(running)
        most = max(most, len(running))
    assert most == num_lines
    assert any(each.tenant == "A" and each.ended is not None for each in shared.requests)


def test_an_event_during_a_step_waits_for_its_end() -> None:
    busy = simulator()
    open_loop(busy, A, [0.0], repeat(Prompt([*range(500)], 1)))
    open_loop(busy, B, [0.5], repeat(Prompt([7, 8], 1)))
    busy.run(5.0)
    first, second = busy.requests
    assert first.ended is not None
    assert second.ttft is not None
    assert second.ttft > first.ended - 0.5 > 1.0


def test_service_counts_the_computed_tokens_of_each_tenant() -> None:
    both = simulator()
    batch(both, A, [Prompt([*range(100)], 3)])
    batch(both, B, [Prompt([*range(100)], 3)], due=5.0)  # all but the last token are cached
    both.drain(100)
    assert sum(step.prefill.get("A", 0) for step in both.steps) == 100
    assert sum(step.decode.get("A", 0) for step in both.steps) == 2
    assert sum(step.prefill.get("B", 0) + step.decode.get("B", 0) for step in both.steps) == 3
    assert both.requests[1].cached_tokens == 99


def test_the_same_simulation_has_the_same_result() -> None:
    def ends() -> list[float | None]:
        each = simulator()
        closed_loop(each, A, 40, questions((60, 32), Random(1)))
        each.run(20.0)
        return [request.ended for request in each.requests]

    assert ends() == ends()


# -- random mixes ------------------------------------------------------------------------------------------------------

Mix = list[tuple[float, list[tuple[int, int, float]]]]
"""For each tenant: its weight and its requests, with their prompt tokens, answer tokens and time of arrival."""

MIXES = st.lists(
    st.tuples(
        st.sampled_from([0.5, 1.0, 3.0]),
        st.lists(
            st.tuples(st.integers(1, 300), st.integers(1, 40), st.floats(0, 10).map(lambda at: round(at, 2))),
            min_size=1,
            max_size=25,
        ),
    ),
    min_size=1,
    max_size=5,
)


MIX_SEQS = 8
"""So few sequences run at once that most requests wait."""


def played(policy: str, lanes: bool, mix: Mix) -> tuple[Simulator, list[Tenant]]:
    """A mix that was served to its end. A third of each prompt is new, the rest is its tenant's own prefix."""
    runner = VirtualRunner()
    mixed = Simulator(scheduler_for(policy, runner.clock, lanes=lanes, max_seqs=MIX_SEQS), runner)
    tenants = [Tenant(f"tenant {number}", weight) for number, (weight, _) in enumerate(mix)]
    rng = Random(0)
    for tenant, (_, requests) in zip(tenants, mix, strict=True):
        prefix = [rng.randrange(50_000) for _ in range(300)]
        for length, max_tokens, at in requests:
            own = length // 3
            prompt = Prompt(prefix[: length - own] + [rng.randrange(50_000) for _ in range(own)], max_tokens)
            open_loop(mixed, tenant, [at], iter([prompt]))
    mixed.drain(max_steps=sum(length + tokens for _, requests in mix for length, tokens, _ in requests) + 100)
    return mixed, tenants


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [True, False])
@given(mix=MIXES)
@settings(max_examples=15)
def test_every_request_of_a_random_mix_is_answered(policy: str, lanes: bool, mix: Mix) -> None:
    mixed, _ = played(policy, lanes, mix)
    assert all(request.num_tokens == request.prompt.max_tokens for request in mixed.requests)
    mixed.scheduler.cache.check_integrity()
    assert mixed.scheduler.cache.num_held == 0


@pytest.mark.parametrize("lanes", [True, False])
@given(mix=MIXES)
@settings(max_examples=30)
def test_with_fair_shares_nobody_is_overtaken_by_more_than_the_bound(lanes: bool, mix: Mix) -> None:
    mixed, tenants = played("fair", lanes, mix)
    smallest = min(tenant.weight for tenant in tenants)
    prompt, answer = 300 / smallest, 40 / smallest
    assert most_overtaken(mixed, tenants) <= service_bound(prompt, MIX_SEQS * answer, QUANTUM)


MANY_AND_ONE: Mix = [(1.0, [(300, 40, 0.0)] * 25), (1.0, [(9, 2, 1.0)])]


def test_with_first_come_first_served_one_request_waits_for_all_before_it() -> None:
    mixed, tenants = played("first-come", lanes=True, mix=MANY_AND_ONE)
    assert most_overtaken(mixed, tenants) > 25 * 100


def test_with_fair_shares_one_request_waits_for_the_running_step_only() -> None:
    mixed, tenants = played("fair", lanes=True, mix=MANY_AND_ONE)
    assert most_overtaken(mixed, tenants) < 64
