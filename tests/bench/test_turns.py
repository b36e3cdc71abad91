"""Conversations beside each other in virtual time: nobody's answer stalls, whatever prompts arrive."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulation import turns
from bench.simulation.machine import CPU, GPU, TOKEN_BUDGET, Part, VirtualRunner, passes, scheduler_for, step_seconds
from bench.simulation.scenarios import Setup
from bench.simulation.simulator import Simulator
from bench.simulation.turns import Shape
from scheduler.pacing import MIN_CHUNK
from scheduler.planner import MAX_REST


def rows(parts: list[Part]) -> list[int]:
    return [sum(num_tokens for _, _, num_tokens in one) for one in passes(parts)]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(0, 9, 1), (1, 9, 1), (2, 9, 1), (3, 0, 9)], [4, 8]),
        ([(0, 9, 1), (1, 9, 1), (3, 9, 1)], [2, 1]),
        ([(2, 0, 9), (1, 0, 5)], [9, 5]),
        ([(1, 0, 5), (2, 0, 5)], [10]),
        ([(0, 0, 174), (1, 0, 174), (2, 0, 173), (3, 0, 173)], [512, 180, 2]),
    ],
)
def test_sequences_share_a_pass_while_their_ids_are_consecutive(parts: list[Part], expected: list[int]) -> None:
    assert rows(parts) == expected


@pytest.mark.parametrize(("answers", "seconds"), [(1, 0.009), (4, 0.023), (8, 0.043), (16, 0.078), (32, 0.152)])
def test_steps_of_answers_take_as_long_as_on_the_machine(answers: int, seconds: float) -> None:
    parts = [(number, 150, 1) for number in range(answers)]
    assert CPU.seconds(parts) - CPU.step == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("length", "speed"), [(64, 244), (128, 257), (512, 257)])
def test_chunks_have_the_speed_of_the_machine(length: int, speed: float) -> None:
    assert length / CPU.seconds([(0, 0, length)]) == pytest.approx(speed, rel=0.07)


def test_in_the_order_of_llama_server_all_turns_stay_in_step() -> None:
    played = turns.play_whole(turns.scripts(Shape(), seed=1))
    assert len(played) == 32
    assert all(len(each.times) == 48 for each in played)
    firsts = sorted({each.times[0] for each in played})
    assert len(firsts) == 4
    measures = turns.measures(played)
    assert measures["itl_max_s"] == pytest.approx(0.06, rel=0.1)
    assert measures["ttft_p50_s"] == pytest.approx(2.4, rel=0.1)


def conversations(shape: Shape, seed: int, *, lanes: bool) -> tuple[Simulator, list[turns.Played]]:
    simulator = Setup(policy="fair", lanes=lanes).simulator()
    return simulator, turns.play(simulator, turns.scripts(shape, seed))


SHAPES = st.builds(
    Shape,
    users=st.sampled_from([1, 2, 4, 8, 16]),
    turns=st.integers(1, 3),
    first=st.integers(20, 400),
    question=st.integers(10, 200),
    answer=st.integers(2, 40),
    variation=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=12, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 3), lanes=st.booleans())
def test_no_answer_stalls_and_nobody_starves(shape: Shape, seed: int, lanes: bool) -> None:
    """However many prompts wait, an answer goes on after one chunk of them, or two beside a long one."""
    simulator, played = conversations(shape, seed, lanes=lanes)
    assert len(played) == shape.users * shape.turns
    deepest = max(len(each.prompt.tokens) + each.num_tokens for each in simulator.requests)
    chunk = CPU.seconds([(0, deepest, MIN_CHUNK)])
    answers = CPU.seconds([(2 * number, deepest, 1) for number in range(shape.users)])
    chunks = 2 if any(len(each.prompt.tokens) > TOKEN_BUDGET for each in simulator.requests) else 1
    rest = MAX_REST * CPU.row + CPU.prompt_context[1] * MIN_CHUNK * (deepest + MIN_CHUNK)
    gaps = [later - earlier for each in played for earlier, later in pairwise(each.times)]
    assert max(gaps) <= chunks * chunk + rest + answers + 0.001
    for step, after in pairwise(simulator.steps):
        waits = any(
            request.submitted <= step.end - step.seconds and request.first is not None and request.first > after.end
            for request in simulator.requests
        )
        assert step.prefill or after.prefill or not waits, "prompts that wait are computed in every second step"


@pytest.mark.parametrize("users", [4, 8, 16])
@pytest.mark.parametrize("lanes", [True, False])
def test_conversations_are_as_fast_as_in_step_and_begin_sooner(users: int, lanes: bool) -> None:
    shape = Shape(users=users)
    peer = turns.measures(turns.play_whole(turns.scripts(shape, seed=2)))
    mine = turns.measures(conversations(shape, 2, lanes=lanes)[1])
    assert all(value is not None for value in (*peer.values(), *mine.values()))
    chunk = CPU.seconds([(0, 500, MIN_CHUNK)])
    assert (mine["tokens_per_s"] or 0) >= 0.96 * (peer["tokens_per_s"] or 0)
    assert (mine["ttft_p50_s"] or 0) <= 0.4 * (peer["ttft_p50_s"] or 0)
    assert (mine["itl_p99_s"] or 0) <= 1.2 * chunk + 0.06 * users / 16
    assert (mine["itl_max_s"] or 0) <= 2 * chunk


def test_on_a_gpu_conversations_begin_sooner_too() -> None:
    runner = VirtualRunner(partial(step_seconds, machine=GPU, lanes=False))
    simulator = Simulator(scheduler_for("fair", runner.clock, GPU, lanes=False), runner)
    users = turns.scripts(Shape(), seed=0)
    mine, peer = turns.measures(turns.play(simulator, users)), turns.measures(turns.play_whole(users, GPU))
    assert (mine["tokens_per_s"] or 0) >= (peer["tokens_per_s"] or 0)
    assert (mine["ttft_p50_s"] or 0) <= 0.4 * (peer["ttft_p50_s"] or 0)
