"""Drafts in random traffic: cells and pages are conserved, and no answer changes."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.lanes import LaneLayout
from kvcache.pool import PoolLayout
from scheduler.drafts.drafting import Drafting
from scheduler.failures import InvalidLogitsError
from scheduler.fair import FairShares
from tests.kvcache.fakes import FakeLanes, FakeMemory
from tests.scheduler.drafts.guesses import Guesses
from tests.scheduler.fakes import FixedCosts, System, expected, prompt
from tests.scheduler.test_several_tokens import EXTRA, Extra, answers
from tests.scheduler.traffic import TRAFFIC, Traffic, system_for


@settings(max_examples=60)
@given(
    TRAFFIC,
    st.lists(EXTRA, min_size=1, max_size=9),
    st.integers(0, 1 << 30),
    st.none() | st.integers(3, 8),
    st.booleans(),
)
def test_answers_and_cells_with_drafts(
    traffic: Traffic, extras: list[Extra], seed: int, max_answers: int | None, several: bool
) -> None:
    """The traffic has ends, limits, grammars, log probabilities, cancels, preemptions and failed steps."""
    plain, cancelled = answers(system_for(traffic), traffic, extras)
    random = Random(seed)
    guesses = Guesses({number: answer.tokens for number, answer in enumerate(plain)}, random)
    system = system_for(traffic, max_answers=max_answers, drafting=Drafting([guesses], max_tokens=max_answers or 64))
    if several:
        system.runner.num_tokens = lambda _: random.randint(1, 3)
    drafted, cancelled_too = answers(system, traffic, extras)
    for number, (one, other) in enumerate(zip(plain, drafted, strict=True)):
        if number in cancelled | cancelled_too:  # perhaps cancelled at different tokens
            length = min(len(one.tokens), len(other.tokens))
            assert one.tokens[:length] == other.tokens[:length]
        else:
            assert one == other
    assert all(plan.num_tokens <= traffic.budget for plan in system.runner.plans)


def drafted(random: int = 1, *, wrong: float = 0.0, length: int = 5, num_prompts: int = 2, **options: Any) -> System:
    """A system whose requests have answers of 40 tokens, and drafts of `length` tokens."""
    known = {number: expected(prompt(1000 * number, 20), 40) for number in range(num_prompts)}
    guesses = Guesses(known, Random(random), wrong=wrong, length=lambda: length)
    system = System(drafting=Drafting([guesses]), **options)
    for number in range(num_prompts):
        system.submit(number, prompt(1000 * number, 20), max_tokens=40, tenant=str(number))
    return system


def check_answers(system: System) -> None:
    system.run()
    for number in system.tokens:
        assert system.tokens[number] == expected(prompt(1000 * number, 20), 40)
    assert system.cache.num_held == 0


def test_accepted_drafts_save_steps() -> None:
    system = drafted(num_prompts=1)
    plan = system.step()
    assert (plan.num_prefill, plan.num_drafted, plan.num_outputs, plan.num_tokens) == (20, 5, 6, 25)
    assert len(system.tokens[0]) == 6
    plan = system.step()
    assert (plan.num_answers, plan.num_decode, plan.num_drafted, plan.num_outputs, plan.num_tokens) == (1, 1, 5, 6, 6)
    assert len(system.tokens[0]) == 12
    assert system.memory.tokens(0) == prompt(0, 20) + system.tokens[0][:11]
    check_answers(system)
    statistics = system.scheduler.statistics()
    assert statistics.steps == 7  # 6 * 6 tokens, then one draft less than the 4 tokens that are left
    assert statistics.decode_tokens == 39
    assert (statistics.num_drafts, statistics.draft_tokens, statistics.accepted_draft_tokens) == (7, 33, 33)
    assert statistics.accepted_per_position[:6] == [7, 7, 7, 6, 6, 0]
    assert statistics.draft_sources["guesses"]["draft_tokens"] == 33


def test_a_prompt_that_is_not_alone_has_no_drafts() -> None:
    """Others would wait for them."""
    system = drafted(num_prompts=2)
    plan = system.step()
    assert (plan.num_prefill, plan.num_drafted) == (40, 0)


def test_a_prompt_asks_no_drafter_that_takes_time() -> None:
    known = {0: expected(prompt(0, 20), 40)}
    guesses = Guesses(known, Random(1), wrong=0.0, length=lambda: 5, seconds=1e-6)
    system = System(drafting=Drafting([guesses]))
    system.submit(0, prompt(0, 20), max_tokens=40)
    assert not system.step().num_drafted
    assert system.step().num_drafted


def test_only_the_last_step_of_a_long_prompt_has_drafts() -> None:
    known = {0: expected(prompt(0, 100), 40)}
    system = System(drafting=Drafting([Guesses(known, Random(1), wrong=0.0, length=lambda: 5)]), token_budget=64)
    system.submit(0, prompt(0, 100), max_tokens=40)
    assert [system.step().num_drafted for _ in range(2)] == [0, 5]
    system.run()
    assert system.tokens[0] == known[0]


def test_cells_of_rejected_drafts_are_removed() -> None:
    system = drafted(wrong=1.0)
    for _ in range(5):
        system.step()
        for number, tokens in system.tokens.items():
            assert system.memory.tokens(number) == prompt(1000 * number, 20) + tokens[:-1]
    check_answers(system)
    for number in range(2):
        outputs = system.outputs[number]
        assert sum(output.rejected_drafts for output in outputs) > 0
        assert sum(output.accepted_drafts for output in outputs) + len(outputs) == 40


def test_a_memory_that_cannot_remove_cells_ends_drafting(caplog: pytest.LogCaptureFixture) -> None:
    system = drafted(wrong=1.0)
    remove = system.memory.remove

    def refuse(sequence_id: int, start: int, stop: int) -> bool:
        return not start and remove(sequence_id, start, stop)

    system.memory.remove = refuse  # type: ignore[method-assign]
    check_answers(system)
    assert system.scheduler.statistics().preemptions == 2, "both sequences of the step are computed again"
    assert "cannot remove rejected drafts" in caplog.text
    assert system.scheduler.statistics().num_drafts == 2


def test_drafts_take_no_page_that_another_sequence_may_need() -> None:
    """With one free page for each running sequence, drafts fit only into pages that the sequence has anyway."""
    system = drafted(num_pages=6, length=60)
    for _ in range(3):
        system.step()
    assert system.scheduler.statistics().draft_tokens > 0
    check_answers(system)
    assert system.scheduler.statistics().preemptions == 0


def test_while_a_prompt_is_computed_several_answers_have_no_drafts() -> None:
    """Steps of the prompt take turns with steps of the answers, which would wait for drafts as well."""
    system = drafted(max_mixed_tokens=0)
    assert system.step().num_prefill
    system.submit(9, prompt(50_000, 200))
    plans = [system.step() for _ in range(12)]
    last = max(number for number, plan in enumerate(plans) if plan.num_prefill)
    assert not any(plan.num_drafted for plan in plans[: last + 1])
    assert any(plan.num_drafted for plan in plans[last + 1 :])


def test_suspects_are_tried_without_drafts() -> None:
    system = drafted()
    system.step()
    system.runner.failures = 1
    system.step()
    assert [system.step().num_drafted for _ in range(3)] == [0, 0, 0]
    assert system.step().num_drafted
    check_answers(system)


def test_a_failure_of_a_request_keeps_no_draft() -> None:
    system = drafted()
    system.step()
    system.runner.chunk_error = lambda chunk: InvalidLogitsError("NaN") if chunk.sequence.request_id else None
    system.step()
    assert system.finish_reason(1) == "error"
    system.runner.chunk_error = lambda _: None
    system.run()
    assert system.tokens[0] == expected(prompt(0, 20), 40)
    assert system.cache.num_held == 0


def test_a_tenant_is_charged_for_accepted_drafts_and_for_no_others() -> None:
    def service(wrong: float, length: int) -> list[float]:
        policy = FairShares(512, FixedCosts(answer_cost=2.0), lambda: 0.0)
        system = drafted(wrong=wrong, length=length, policy=policy)
        while all(len(tokens) < 33 for tokens in system.tokens.values()):
            system.step()
        lengths = {str(number): len(tokens) for number, tokens in system.tokens.items()}
        return [round(each["service"] - 2.0 * lengths[each["tenant"]], 1) for each in policy.statistics()]

    assert service(0.0, 0) == service(0.0, 5) == service(1.0, 5)


@pytest.mark.parametrize("lanes", [True, False])
def test_drafts_go_on_in_another_memory(lanes: bool) -> None:
    """Between two steps, no cells of drafts and no pages for them are left over."""
    system = drafted(wrong=0.5, length=3, lanes=lanes, ctx_len=128, max_seqs=4)
    for num_ids in (8, 4, 6, 4):
        for _ in range(3):
            system.step()
        if lanes:
            system.memory, system.layout = FakeLanes(4), LaneLayout(4, num_ids, keeps_evicted=True)
        else:
            system.memory, system.layout = FakeMemory(10 * num_ids), PoolLayout(10 * num_ids, 16)
        system.scheduler.residents.move(system.memory, system.layout)
        system.runner.memory = system.memory
        system.cache.check_integrity()
    check_answers(system)
    assert system.scheduler.statistics().preemptions == 0
