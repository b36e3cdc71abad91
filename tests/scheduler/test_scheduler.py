"""The scheduler on a fake model whose answers depend on every token in its memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.tree import PAGE_TOKENS
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import Plan
from scheduler.planner import MAX_SCORED_TOKENS
from scheduler.sequence import Sequence
from tests.scheduler.fakes import EOG, FakeGrammar, System, expected, prompt
from tests.scheduler.traffic import TRAFFIC, Traffic, check_answers, serve, system_for


def test_a_request_gets_the_models_tokens() -> None:
    system = System()
    system.submit(1, prompt(10, 50), max_tokens=5)
    system.run()
    assert system.tokens[1] == expected(prompt(10, 50), 5)
    assert system.finish_reason(1) == "length"


def test_an_end_token_stops_the_request() -> None:
    system = System()
    system.runner.sample = lambda tokens: EOG if len(tokens) >= 12 else 7
    system.submit(1, prompt(10, 10), max_tokens=50)
    system.run()
    assert system.tokens[1] == [7, 7, EOG]
    assert system.finish_reason(1) == "stop"


def test_with_ignore_eos_generation_continues_to_the_limit() -> None:
    system = System()
    system.runner.sample = lambda _: EOG
    system.submit(1, prompt(10, 10), max_tokens=6, ignore_eos=True)
    system.run()
    assert system.tokens[1] == [EOG] * 6
    assert system.finish_reason(1) == "length"


def test_a_long_prompt_is_computed_in_chunks_within_the_budget() -> None:
    system = System(token_budget=100)
    system.submit(1, prompt(10, 250))
    assert [system.step().num_prefill for _ in range(3)] == [100, 100, 50]


def test_answers_continue_in_every_step_beside_a_prompt() -> None:
    system = System()
    for request in range(4):
        system.submit(request, prompt(1000 * request, 20), max_tokens=100)
    for _ in range(5):
        system.step()
    system.submit(9, prompt(50_000, 700))
    while system.tokens[9] == []:
        plan = system.step()
        assert {0, 1, 2, 3} <= system.chunks(plan).keys()


def test_prompt_chunks_are_sized_by_measured_time_while_answers_stream() -> None:
    def seconds(plan: Plan) -> float:
        context = max(chunk.start for chunk in plan.chunks)
        return 0.001 * plan.num_tokens * (1 + context / 1000)

    system = System(seconds=seconds)
    system.submit(1, prompt(0, 20), max_tokens=200)
    system.step()
    system.submit(2, prompt(50_000, 1800))
    sizes = []
    while system.tokens[2] == []:
        before = system.runner.now
        sizes.append(system.step().num_prefill)
        assert system.runner.now - before < 0.001 * 64 * 3.5
    assert sizes[0] > 100
    assert min(sizes[:-1]) == 64


def test_a_prompt_gets_the_whole_budget_when_nothing_streams() -> None:
    system = System()
    system.submit(1, prompt(0, 1500))
    assert system.step().num_prefill == 512


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    system = System(token_budget=128, ctx_len=4096, num_pages=128)
    system.submit(1, prompt(0, 2000))
    system.step()
    system.submit(2, prompt(50_000, 60))
    system.step()
    assert len(system.tokens[2]) == 1
    assert system.tokens[1] == []


def test_the_oldest_prompt_always_gets_half_of_the_budget() -> None:
    system = System(token_budget=128, ctx_len=4096, num_pages=128)
    system.submit(1, prompt(0, 2000))
    for request in range(2, 12):
        system.submit(request, prompt(10_000 * request, 60), max_tokens=1)
        assert system.chunks(system.step())[1].num_tokens >= 64


def test_requests_wait_for_a_prefix_that_another_one_computes() -> None:
    system = System(token_budget=64)
    shared = prompt(0, 200)
    for request in range(5):
        system.submit(request, shared + prompt(1000 * (request + 1), 8), max_tokens=3)
    system.run()
    assert system.scheduler.statistics().prefill_tokens == 200 + 5 * 8
    for request in range(5):
        assert system.tokens[request] == expected(shared + prompt(1000 * (request + 1), 8), 3)
        assert system.outputs[request][0].cached_tokens == (200 if request else 0)


def test_cancelling_the_computing_request_admits_the_waiting_ones() -> None:
    system = System(token_budget=64)
    shared = prompt(0, 200)
    for request in range(3):
        system.submit(request, shared + [900 + request], max_tokens=3)
    system.step()
    system.scheduler.cancel(0)
    system.run()
    for request in (1, 2):
        assert system.tokens[request] == expected(shared + [900 + request], 3)
    assert system.scheduler.statistics().prefill_tokens <= 200 + 64


def test_another_request_overtakes_those_that_wait_for_a_prefix() -> None:
    system = System(token_budget=64)
    system.submit(1, prompt(0, 200), max_tokens=1)
    system.submit(2, prompt(0, 200) + [7], max_tokens=1)
    system.submit(3, prompt(5000, 10), max_tokens=1)
    assert system.chunks(system.step()).keys() == {1, 3}


def test_no_more_than_max_seqs_run_and_all_finish() -> None:
    system = System(max_seqs=3)
    for request in range(10):
        system.submit(request, prompt(1000 * request, 20))
    seen = 0
    while system.scheduler.has_work:
        system.step()
        seen = max(seen, system.scheduler.statistics().running)
    assert seen == 3
    assert all(system.finish_reason(request) == "length" for request in range(10))


def test_without_free_pages_the_latest_arrival_is_preempted_and_loses_no_token() -> None:
    system = System(num_pages=16, max_seqs=16)
    for request in range(8):
        system.submit(request, prompt(1000 * request, 30), max_tokens=150)
    oldest_steps = 0
    while system.scheduler.has_work:
        plan = system.step()
        oldest_steps += 0 in system.chunks(plan)
    assert oldest_steps == 150  # the oldest advanced in every step
    assert system.scheduler.statistics().preemptions > 0
    for request in range(8):
        assert system.tokens[request] == expected(prompt(1000 * request, 30), 150)
    assert system.cache.num_held == 0
    assert system.cache.num_free + system.cache.num_cached == 16


def test_a_preempted_request_keeps_its_place_in_the_queue() -> None:
    system = System(num_pages=8, max_seqs=16)
    for request in range(4):
        system.submit(request, prompt(1000 * request, 30), max_tokens=60)
    order: list[int] = []
    while system.scheduler.has_work:
        system.step()
        order += [r for r in range(4) if system.outputs[r] and system.finish_reason(r) and r not in order]
    assert order == [0, 1, 2, 3]


def test_admission_spares_a_page_for_each_running_sequence() -> None:
    system = System(num_pages=8)
    system.submit(1, prompt(0, 64), max_tokens=100)
    system.submit(2, prompt(1000, 64), max_tokens=100)
    system.step()
    system.submit(3, prompt(2000, 96), max_tokens=1)  # three pages are free, but two of them are spared
    for _ in range(3):
        assert 3 not in system.chunks(system.step())
    system.scheduler.cancel(2)
    assert 3 in system.chunks(system.step())


def test_a_request_that_can_never_fit_is_rejected_at_once() -> None:
    system = System(ctx_len=100)
    system.submit(1, prompt(0, 90), max_tokens=20)
    assert system.finish_reason(1) == "error"
    assert not system.scheduler.has_work


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_cancelling_is_idempotent_and_frees_all_pages(steps: int) -> None:
    system = System(token_budget=64)
    system.submit(1, prompt(0, 100), max_tokens=50)
    system.submit(2, prompt(0, 100) + prompt(700, 10), max_tokens=5)
    for _ in range(steps):
        system.step()
    for _ in range(2):
        system.scheduler.cancel(1)
    system.scheduler.cancel(99)
    system.run()
    assert system.tokens[2] == expected(prompt(0, 100) + prompt(700, 10), 5)
    assert system.cache.num_held == 0
    assert system.scheduler.statistics().cancelled == 1


def test_a_failed_step_is_repeated() -> None:
    system = System()
    for request in range(3):
        system.submit(request, prompt(1000 * request, 40), max_tokens=10)
    system.step()
    system.runner.failures = 2
    system.run()
    for request in range(3):
        assert system.tokens[request] == expected(prompt(1000 * request, 40), 10)
    assert system.scheduler.statistics().failed_steps == 2


def test_a_request_that_keeps_failing_ends_with_an_error() -> None:
    system = System()
    system.submit(1, prompt(0, 40), max_tokens=10)
    system.step()
    system.runner.failures = 3
    system.run()
    assert system.finish_reason(1) == "error"
    assert system.outputs[1][-1].error
    assert system.cache.num_held == 0
    system.submit(2, prompt(0, 40), max_tokens=2)
    system.run()
    assert system.tokens[2] == expected(prompt(0, 40), 2)


def test_the_next_turn_of_a_conversation_computes_only_new_tokens() -> None:
    system = System()
    system.submit(1, prompt(0, 50), max_tokens=10)
    system.run()
    history = prompt(0, 50) + system.tokens[1]
    system.submit(2, history + prompt(900, 12), max_tokens=3)
    system.run()
    assert system.outputs[2][0].cached_tokens == 59  # the last token was never computed
    assert system.tokens[2] == expected(history + prompt(900, 12), 3)


@settings(max_examples=60, deadline=None)
@given(TRAFFIC)
def test_every_request_gets_its_answer_in_any_traffic(traffic: Traffic) -> None:
    """Shared prefixes, scarce memory, cancels and failures in any mix do not change the answers."""
    system = system_for(traffic)
    check_answers(system, traffic, serve(system, traffic))


# Grammars


def test_forced_tokens_are_returned_at_once_and_computed_together() -> None:
    system = System()
    system.submit(1, prompt(0, 40), max_tokens=50, grammar=FakeGrammar([7, 8, 9], []))
    system.step()
    assert system.outputs[1][-1].tokens == [*expected(prompt(0, 40), 1), 7, 8, 9]
    chunk = system.chunks(system.step())[1]
    assert (chunk.start, chunk.num_tokens, chunk.samples) == (40, 4, True)
    assert system.finish_reason(1) == "stop"
    known = prompt(0, 40) + system.tokens[1]
    assert system.tokens[1][-1:] == expected(known[:-1], 1)


def test_forced_tokens_never_exceed_max_tokens() -> None:
    system = System()
    system.submit(1, prompt(0, 10), max_tokens=3, grammar=FakeGrammar([7, 8, 9]))
    system.run()
    assert len(system.tokens[1]) == 3
    assert system.finish_reason(1) == "length"


def test_pages_for_forced_tokens_come_from_the_latest_arrival() -> None:
    system = System(num_pages=4)
    system.submit(1, prompt(0, PAGE_TOKENS - 2), max_tokens=99, grammar=FakeGrammar([*range(2 * PAGE_TOKENS)], []))
    system.submit(2, prompt(500, 2 * PAGE_TOKENS - 2), max_tokens=3)
    system.run()
    assert system.scheduler.statistics().preemptions
    assert system.finish_reason(1) == "stop"
    assert system.tokens[2] == expected(prompt(500, 2 * PAGE_TOKENS - 2), 3)


def test_an_answer_that_violates_its_grammar_fails_alone() -> None:
    system = System()
    system.submit(1, prompt(0, 10), grammar=FakeGrammar(error="too complex"))
    system.submit(2, prompt(100, 10))
    system.run()
    assert (system.finish_reason(1), system.outputs[1][-1].error) == ("refused", "too complex")
    assert system.tokens[2] == expected(prompt(100, 10), 4)
    assert system.cache.num_held == 0


# Probabilities of the prompt


def scored_tokens(system: System, request_id: int) -> list[int]:
    return [-int(logprob) for output in system.outputs[request_id] for logprob, _ in output.prompt_logprobs]


def test_a_scored_prompt_is_computed_in_limited_chunks_in_spite_of_a_hit() -> None:
    system = System()
    system.submit(1, prompt(0, 200))
    system.run()
    system.submit(2, prompt(0, 200), score_prompt=True)
    plans = [system.step() for _ in range(4)]
    assert [plan.num_tokens for plan in plans] == [MAX_SCORED_TOKENS, MAX_SCORED_TOKENS, MAX_SCORED_TOKENS, 8]
    system.run()
    assert scored_tokens(system, 2) == prompt(0, 200)[1:]
    assert system.tokens[2] == system.tokens[1]
    assert max(output.cached_tokens for output in system.outputs[2]) == 0


def test_prompt_log_probabilities_are_returned_once_after_a_preemption() -> None:
    system = System(num_pages=24)
    growing = FakeGrammar(*[[*range(PAGE_TOKENS)]] * 5, [])
    system.submit(1, prompt(0, 2 * PAGE_TOKENS - 2), max_tokens=500, grammar=growing)
    system.submit(2, prompt(1000, 20 * PAGE_TOKENS - 2), score_prompt=True)
    while not system.scheduler.statistics().preemptions:
        system.step()
    assert 0 < len(scored_tokens(system, 2)) < 20 * PAGE_TOKENS - 3
    system.run()
    assert scored_tokens(system, 2) == prompt(1000, 20 * PAGE_TOKENS - 2)[1:]
    assert system.tokens[2] == expected(prompt(1000, 20 * PAGE_TOKENS - 2), 4)


# Requests that an earlier engine has started


@given(st.integers(0, 11), st.booleans())
@settings(max_examples=20, deadline=None)
def test_an_answer_continues_where_another_engine_stopped(count: int, lanes: bool) -> None:
    answer = expected(prompt(10, 50), 12)
    system = System(lanes=lanes, ctx_len=128)
    system.submit(1, prompt(10, 50), max_tokens=12, answer=answer[:count])
    system.run()
    assert system.tokens[1] == answer[count:]
    assert system.finish_reason(1) == "length"
    assert system.scheduler.statistics().prefill_tokens == 50 + count


def test_a_request_whose_answer_is_complete_is_rejected() -> None:
    system = System()
    system.submit(1, prompt(10, 50), max_tokens=12, answer=expected(prompt(10, 50), 12))
    assert system.finish_reason(1) == "error"
    assert not system.scheduler.has_work


def test_a_resumed_answer_is_sampled_like_an_uninterrupted_one() -> None:
    params = SamplingParams(seed=7, frequency_penalty=0.5, repeat_penalty=1.3, dry_multiplier=1.0, min_tokens=5)
    known, answer = [5, 6, 7, 5, 6], [7, 5, 6, 7]
    whole, resumed = Sequence(Submit(1, known, 9, params), 0), Sequence(Submit(1, known, 9, params, answer=answer), 0)
    logits = np.linspace(-1, 1, 12, dtype=np.float32)
    ends = np.array([EOG])
    assert not np.array_equal(whole.sampler.adjusted(logits, ends).copy(), resumed.sampler.adjusted(logits, ends))
    for token in answer:
        whole.append(token)
    assert (whole.known, whole.last_token, whole.max_known) == (resumed.known, resumed.last_token, resumed.max_known)
    assert whole.sampler.draw() == resumed.sampler.draw()
    assert np.array_equal(whole.sampler.adjusted(logits, ends).copy(), resumed.sampler.adjusted(logits, ends))


def test_two_engines_return_prompt_log_probabilities_once() -> None:
    first, second = System(), System()
    first.submit(1, prompt(0, 200), score_prompt=True)
    first.step()
    begun = scored_tokens(first, 1)
    assert 0 < len(begun) < 199
    second.submit(1, prompt(0, 200), score_prompt=True, num_scored=len(begun))
    second.run()
    assert begun + scored_tokens(second, 1) == prompt(0, 200)[1:]
    assert second.tokens[1] == expected(prompt(0, 200), 4)


@pytest.mark.parametrize("count", [0, 2])
def test_complete_prompt_log_probabilities_are_not_returned_again(count: int) -> None:
    answer = expected(prompt(0, 200), 4)
    system = System()
    system.submit(1, prompt(0, 200), score_prompt=True, num_scored=199, answer=answer[:count])
    system.run()
    assert scored_tokens(system, 1) == []
    assert system.tokens[1] == answer[count:]


def test_other_requests_advance_beside_scored_prompts() -> None:
    system = System()
    for request_id in range(4):
        system.submit(request_id, prompt(1000 * request_id, 100), score_prompt=True)
    system.submit(9, prompt(9000, 100))
    plan = system.step()
    assert sum(chunk.num_tokens for chunk in plan.chunks if chunk.scores) == MAX_SCORED_TOKENS
    assert system.chunks(plan)[9].num_tokens == 100


@pytest.fixture
def streaming() -> System:
    """A system with a streaming answer, where large steps must not mix prompts and answers."""
    system = System(max_mixed_tokens=63)
    system.submit(1, list(range(100, 110)), max_tokens=40, ignore_eos=True)
    while len(system.tokens[1]) < 3:
        system.step()
    return system


def test_prompts_and_answers_take_turns_if_large_steps_must_not_mix(streaming: System) -> None:
    system = streaming
    system.submit(2, list(range(1000, 1600)), max_tokens=2, ignore_eos=True)
    kinds = []
    while not system.tokens[2]:
        plan = system.step()
        kinds.append((plan.num_decode > 0, plan.num_prefill > 0))
    assert {(True, False), (False, True)} >= set(kinds[:-1])
    assert all(one != other for one, other in pairwise(kinds[:-1]))


def test_small_steps_are_always_mixed(streaming: System) -> None:
    system = streaming
    system.submit(2, list(range(1000, 1060)), max_tokens=2, ignore_eos=True)
    plan = system.step()
    assert (plan.num_decode, plan.num_prefill) == (1, 60)


def test_more_answers_than_fit_into_a_step_take_turns_fairly() -> None:
    system = System(num_pages=256, num_ids=100, max_seqs=100, max_mixed_tokens=30, max_answers=30)
    for number in range(100):
        system.submit(number, prompt(number * 100, 20), max_tokens=30, ignore_eos=True)
    while not all(system.tokens.values()):
        system.step()
    for _ in range(3):
        before = {number: len(tokens) for number, tokens in system.tokens.items()}
        plans = [system.step() for _ in range(4)]
        assert [plan.num_decode for plan in plans] == [25] * 4
        assert all(len(tokens) == before[number] + 1 for number, tokens in system.tokens.items())


# Lanes


def test_in_lanes_answers_are_computed_in_the_order_of_their_lanes() -> None:
    """llama.cpp computes sequences in one micro-batch only if their ids are consecutive."""
    seen: list[list[int]] = []

    def watch(plan: Plan) -> float:
        seen.append([chunk.sequence.sequence_id for chunk in plan.chunks[: plan.num_decode]])
        return 0.01

    system = System(lanes=True, max_seqs=8, seconds=watch)
    for number in range(8):
        system.submit(number, prompt(1000 * number, 20), max_tokens=3 + number, ignore_eos=True)
    for _ in range(6):
        system.step()
    for number in range(8, 12):
        system.submit(number, prompt(1000 * number, 20), max_tokens=9, ignore_eos=True)
    system.run()
    assert max(map(len, seen)) == 8
    assert seen == [sorted(ids) for ids in seen]


def test_in_lanes_a_prompt_between_two_answers_computes_a_token_with_them() -> None:
    """Otherwise the answers on both sides would take a pass over the weights each."""
    system = System(lanes=True, max_seqs=4)
    system.submit(0, prompt(0, 20), max_tokens=100, ignore_eos=True)
    system.submit(1, prompt(1000, 20), max_tokens=2, ignore_eos=True)
    for number in range(2, 4):
        system.submit(number, prompt(1000 * number, 20), max_tokens=100, ignore_eos=True)
    while len(system.tokens[1]) < 2:
        system.step()
    system.submit(4, prompt(4000, 200), max_tokens=10, ignore_eos=True)
    plans = [system.step() for _ in range(6)]
    mixed = [plan for plan in plans if plan.num_decode and plan.num_prefill]
    assert mixed
    for plan in mixed:
        assert (plan.num_answers, plan.num_decode, plan.num_prefill, plan.num_fillers) == (3, 3, 1, 1)
        assert sorted(chunk.sequence.sequence_id for chunk in plan.chunks) == [0, 1, 2, 3]
        assert not plan.chunks[-1].samples
    system.run()
    assert system.tokens[4] == expected(prompt(4000, 200), 10)


def test_in_lanes_a_prompt_beside_all_answers_waits_for_its_own_step() -> None:
    system = System(lanes=True, max_seqs=4)
    for number in range(3):
        system.submit(number, prompt(1000 * number, 20), max_tokens=100, ignore_eos=True)
    system.step()
    system.submit(3, prompt(3000, 200), max_tokens=10, ignore_eos=True)
    assert not any(plan.num_decode and plan.num_prefill for plan in [system.step() for _ in range(8)])


def test_in_lanes_prompts_of_unequal_length_are_computed_one_by_one() -> None:
    system = System(lanes=True, max_seqs=8)
    for number, length in enumerate((100, 70, 90)):
        system.submit(number, prompt(1000 * number, length))
    assert [chunk.sequence.sequence_id for chunk in system.step().chunks] == [2, 1, 0]


def test_in_lanes_prompts_of_equal_length_are_computed_together() -> None:
    system = System(lanes=True, max_seqs=8)
    for number in range(3):
        system.submit(number, prompt(1000 * number, 20))
    assert [chunk.sequence.sequence_id for chunk in system.step().chunks] == [0, 1, 2]
