"""How many drafted tokens a step verifies."""

from collections.abc import Sequence as Items
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from scheduler.drafts.amount import Amounts, Offer
from scheduler.drafts.passes import NODES, PassSeconds
from scheduler.plan import Chunk, Plan
from scheduler.sequence import Sequence

ROWS: Items[float] = 1, 16, 32, 64, 128, 512
SECONDS: Items[float] = 0.0093, 16 / 190, 32 / 190, 64 / 250, 128 / 250, 512 / 250
"""About those of SmolLM2 135M on two cores."""


def pass_seconds(rows: int) -> float:
    return float(np.interp(rows, ROWS, SECONDS))


def known_passes() -> PassSeconds:
    passes = PassSeconds(1 / 250, 0.0093)
    for _ in range(60):
        for rows in NODES:
            passes.observe([rows], pass_seconds(rows))
    return passes


PASSES = known_passes()


def amounts(*, in_lanes: bool, target: float = 10.0) -> Amounts:
    return Amounts(PASSES, SimpleNamespace(target_seconds=target), in_lanes=in_lanes)


def offer(number: int, num_tokens: int, acceptance: float) -> Offer:
    """Drafts of which each token is equally probable after those before it."""
    return Offer(number, [acceptance**count for count in range(1, num_tokens + 1)])


def plan_of(ids: Items[int]) -> Plan:
    sequences = (cast(Sequence, SimpleNamespace(sequence_id=number)) for number in ids)
    return Plan([Chunk(each, 100, 1, samples=True) for each in sequences], len(ids), len(ids))


@pytest.mark.parametrize("in_lanes", [True, False])
@pytest.mark.parametrize(
    ("acceptance", "least", "most"),
    [(0.3, 0, 0), (0.5, 0, 0), (0.8, 1, 4), (0.95, 4, 16), (0.98, 8, 32), (0.995, 48, 63)],
)
def test_a_single_stream_gets_more_the_surer_its_drafts_are(
    in_lanes: bool, acceptance: float, least: int, most: int
) -> None:
    choice = amounts(in_lanes=in_lanes).choose(plan_of([0]), [offer(0, 63, acceptance)], 64)
    assert least <= choice.get(0, 0) <= most


@pytest.mark.parametrize("in_lanes", [True, False])
def test_a_draft_ends_before_a_doubtful_token(in_lanes: bool) -> None:
    sure = [0.99**count for count in range(1, 9)]
    chances = sure + [0.3 * sure[-1] * 0.99**count for count in range(1, 9)]
    assert amounts(in_lanes=in_lanes).choose(plan_of([0]), [Offer(0, chances)], 64) == {0: 8}


def test_drafts_pay_less_often_after_a_long_context() -> None:
    passes = PassSeconds(1 / 250, 0.009, cell_share=0.00025)
    choose = Amounts(passes, SimpleNamespace(target_seconds=1.0), in_lanes=True).choose
    plan, offers = plan_of([0]), [offer(0, 63, 0.8)]
    assert choose(plan, offers, 64)
    plan.chunks[0].start = 4000
    assert choose(plan, offers, 64) == {}


@pytest.mark.parametrize("in_lanes", [True, False])
def test_a_short_draft_and_the_room_are_limits(in_lanes: bool) -> None:
    choose = amounts(in_lanes=in_lanes).choose
    assert choose(plan_of([0]), [offer(0, 6, 0.99)], 64) == {0: 6}
    assert choose(plan_of([0]), [offer(0, 63, 0.99)], 3) == {0: 3}


@pytest.mark.parametrize("in_lanes", [True, False])
def test_one_drafting_stream_does_not_slow_many_others_down(in_lanes: bool) -> None:
    offers = [offer(0, 63, 0.99)]
    assert amounts(in_lanes=in_lanes).choose(plan_of(range(8)), offers, 64) == {}
    assert amounts(in_lanes=in_lanes).choose(plan_of(range(2)), offers, 64)[0] >= 16


def test_in_lanes_a_drafting_stream_pays_for_the_extra_pass() -> None:
    """Each pass reads the weights. In a pool there is no other pass."""
    offers = [offer(number, 30, 0.985) for number in range(2)]
    assert amounts(in_lanes=True).choose(plan_of(range(4)), offers, 64) == {}
    assert amounts(in_lanes=False).choose(plan_of(range(4)), offers, 64).keys() == {0, 1}


def test_in_lanes_answers_draft_equally_much() -> None:
    offers = [offer(number, 40, 0.95 + 0.005 * number) for number in range(4)]
    choice = amounts(in_lanes=True).choose(plan_of(range(4)), offers, 64)
    assert choice.keys() == {0, 1, 2, 3}
    assert len(set(choice.values())) == 1


def test_in_a_pool_the_surest_drafts_get_most() -> None:
    offers = [offer(0, 40, 0.6), offer(1, 40, 0.9), offer(2, 40, 0.99)]
    choice = amounts(in_lanes=False).choose(plan_of(range(3)), offers, 63)
    assert choice[0] < choice[1] < choice[2]
    assert sum(choice.values()) <= 63


@pytest.mark.parametrize("in_lanes", [True, False])
def test_many_answers_need_no_drafts_that_may_fail(in_lanes: bool) -> None:
    offers = [offer(number, 63, 0.5) for number in range(32)]
    assert amounts(in_lanes=in_lanes).choose(plan_of(range(32)), offers, 64) == {}


@pytest.mark.parametrize("in_lanes", [True, False])
def test_a_step_with_others_keeps_the_target(in_lanes: bool) -> None:
    offers = [offer(number, 63, 0.99) for number in range(2)]
    plan, free = plan_of(range(2)), amounts(in_lanes=in_lanes)
    assert sum(free.choose(plan, offers, 64).values()) > 40
    choice = amounts(in_lanes=in_lanes, target=0.1).choose(plan, offers, 64)
    assert 4 <= sum(choice.values()) <= 18


def test_the_time_to_draft_counts() -> None:
    offers, plan = [offer(0, 63, 0.9)], plan_of([0])
    choose = amounts(in_lanes=True).choose
    free = choose(plan, offers, 64)[0]
    cheap = choose(plan, offers, 64, lambda _, count: 0.001 * count).get(0, 0)
    assert cheap <= free
    assert choose(plan, offers, 64, lambda _, count: 0.01 * count) == {}


@pytest.mark.parametrize(
    ("start", "rows", "acceptance", "least", "most"),
    [
        (1500, 1, 0.99, 0, 0),  # the next step verifies as many, and the first token comes first
        (1500, 8, 0.99, 0, 0),
        (0, 30, 0.99, 0, 0),
        (1500, 50, 0.99, 14, 63),  # 64 rows take less time than 50
        (1500, 50, 0.5, 14, 14),
        (1500, 500, 0.5, 0, 0),
    ],
)
def test_drafts_come_with_a_prompt_if_they_hardly_delay_its_answer(
    start: int, rows: int, acceptance: float, least: int, most: int
) -> None:
    passes = PassSeconds(1 / 300, 0.0085, cell_share=0.00027)
    choose = Amounts(passes, SimpleNamespace(target_seconds=1.0), in_lanes=True).choose_after_prompt
    chunk = Chunk(cast(Sequence, SimpleNamespace(sequence_id=0)), start, rows, samples=True)
    assert least <= choose(chunk, offer(0, 63, acceptance), 63) <= most
    assert choose(chunk, offer(0, 63, acceptance), 2) <= 2


def test_passes_of_a_step_in_lanes() -> None:
    """llama.cpp cuts at the shortest chunk, and at each gap between the ids."""
    passes = PassSeconds(1 / 250, 0.0093)
    seen: list[list[int]] = []
    passes.observe = lambda rows, *_: seen.append(list(rows))  # type: ignore[method-assign]
    passes.hope = lambda rows: None  # type: ignore[method-assign]
    in_lanes = Amounts(passes, SimpleNamespace(target_seconds=1.0), in_lanes=True)
    plan = plan_of([0, 1, 2, 3])
    in_lanes.observe(plan, 1.0)
    plan.chunks[3].drafts = [1] * 8
    plan.num_drafted = 8
    in_lanes.observe(plan, 1.0)
    in_lanes.observe(plan_of([0, 1, 5]), 1.0)
    in_lanes.observe(Plan(plan.chunks, 4, 4, 60), 1.0)
    Amounts(passes, SimpleNamespace(target_seconds=1.0), in_lanes=False).observe(plan, 1.0)
    assert seen == [[4], [4, 8], [2, 1], [12]]
