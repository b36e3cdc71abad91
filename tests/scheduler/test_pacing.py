"""The pacer sizes chunks by measured time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.pacing import FULL_SPEED_TOKENS, MIN_CHUNK, SMALLEST_CHUNK, STRETCH, Pacer


def test_the_first_chunk_has_full_speed() -> None:
    pacer = Pacer(0.002)
    assert pacer.target_seconds == pytest.approx(0.002 * FULL_SPEED_TOKENS)
    assert pacer.num_prefill_tokens(0) == FULL_SPEED_TOKENS


def test_decodes_reduce_the_chunk() -> None:
    assert Pacer(0.002).num_prefill_tokens(20) == FULL_SPEED_TOKENS - 20


@pytest.mark.parametrize("speed", [3e-4, 1e-3, 10.0])
def test_the_default_target_depends_on_the_machines_speed(speed: float) -> None:
    pacer = Pacer(speed)
    for _ in range(20):
        pacer.observe(0, 100, 0, 100 * speed * 1.25)
    assert pacer.num_prefill_tokens(0) == pytest.approx(FULL_SPEED_TOKENS / 1.25, abs=1)


def test_a_fast_machine_computes_as_many_tokens_as_nobody_notices() -> None:
    """As on a GPU, where a step of few tokens takes nearly as long as one of many."""
    pacer = Pacer(2e-5)
    for num_tokens in (64, 512) * 20:
        pacer.observe(0, num_tokens, 0, 0.005 + 2e-5 * num_tokens)
    assert pacer.num_prefill_tokens(8) == pytest.approx(1250, rel=0.1), "those of 30 ms"


def test_turns_of_prompts_are_as_long_as_full_speed_needs() -> None:
    pacer = Pacer(2e-5, max_mixed_tokens=0, full_speed=512)
    for num_tokens in (64, 512) * 20:
        pacer.observe(8, 0, 0, 0.002)
        pacer.observe(0, num_tokens, 0, 0.005 + 2e-5 * num_tokens)
    assert pacer.num_prefill_tokens(8) == 512
    assert pacer.num_prefill_tokens(8, is_shared=True) == 1024


def test_expensive_tokens_shrink_the_chunk_down_to_a_minimum() -> None:
    pacer = Pacer(0.001)
    sizes = []
    for cost in (0.001, 0.0012, 0.0015, 0.0018, 0.004, 0.1):
        for _ in range(20):
            pacer.observe(5, 95, 0, 100 * cost)
        sizes.append(pacer.num_prefill_tokens(5))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(FULL_SPEED_TOKENS - 5, abs=1)
    assert sizes[-1] == SMALLEST_CHUNK


def test_a_step_is_stretched_within_a_limit_to_avoid_small_chunks() -> None:
    pacer = Pacer(0.001)
    sizes = {}
    for cost in (0.0021, 0.0029, 0.0035, 0.0045):
        for _ in range(20):
            pacer.observe(0, 100, 0, 100 * cost)
        sizes[cost] = pacer.num_prefill_tokens(0)
    assert sizes[0.0021] == sizes[0.0029] == MIN_CHUNK
    assert sizes[0.0035] == pytest.approx(STRETCH * FULL_SPEED_TOKENS / 3.5, rel=0.1)
    assert sizes[0.0045] == pytest.approx(STRETCH * FULL_SPEED_TOKENS / 4.5, rel=0.1)


def test_chunks_grow_again_when_tokens_get_cheaper() -> None:
    pacer = Pacer(0.001)
    for _ in range(20):
        pacer.observe(0, 64, 0, 64 * 0.01)
    assert pacer.num_prefill_tokens(0) == SMALLEST_CHUNK
    for _ in range(20):
        pacer.observe(0, 64, 0, 64 * 0.001)
    assert pacer.num_prefill_tokens(0) == pytest.approx(FULL_SPEED_TOKENS, rel=0.1)


def test_steps_that_mostly_read_the_weights_are_ignored() -> None:
    pacer = Pacer(0.001)
    for _ in range(20):
        pacer.observe(8, 0, 0, 1.0)
        pacer.observe(8, SMALLEST_CHUNK - 1, 0, 1.0)
    assert pacer.num_prefill_tokens(0) == FULL_SPEED_TOKENS


def test_one_slow_step_does_not_decide_alone() -> None:
    pacer = Pacer(0.001)
    pacer.observe(0, 100, 0, 100 * 0.0012)
    assert FULL_SPEED_TOKENS / 1.2 < pacer.num_prefill_tokens(0) < FULL_SPEED_TOKENS


def test_many_decodes_leave_the_smallest_chunk() -> None:
    assert Pacer(0.001).num_prefill_tokens(1000) == SMALLEST_CHUNK


def test_an_estimate_from_a_busy_machine_is_corrected() -> None:
    pacer = Pacer(0.010)
    pacer.observe(0, 128, 0, 128 * 0.001)
    assert pacer.target_seconds == pytest.approx(0.001 * FULL_SPEED_TOKENS)


def test_a_step_between_answers_has_the_smallest_chunk_of_full_speed() -> None:
    pacer = Pacer(0.001, max_mixed_tokens=63)
    assert pacer.num_prefill_tokens(8) == MIN_CHUNK
    for _ in range(20):
        pacer.observe(8, 0, 0, 0.050)
    assert pacer.num_prefill_tokens(8) == MIN_CHUNK, "the time of the answers does not make it slower"


def test_a_step_that_answers_share_takes_the_whole_target() -> None:
    assert Pacer(0.001, max_mixed_tokens=512).num_prefill_tokens(8) == FULL_SPEED_TOKENS - 8


@given(num_decode=st.integers(1, 64), context=st.integers(0, 8192), decode_ms=st.integers(1, 300))
def test_steps_between_answers_are_bounded(num_decode: int, context: int, decode_ms: int) -> None:
    """They have at most MIN_CHUNK tokens, and with the answers they take at most the stretched target."""
    pacer = Pacer(0.004, max_mixed_tokens=0)
    each = 0.004 + 0.002 * context / 1024
    for _ in range(10):
        pacer.observe(num_decode, 0, 0, decode_ms / 1000)
        pacer.observe(0, MIN_CHUNK, MIN_CHUNK * context, MIN_CHUNK * each)
    num_tokens = pacer.num_prefill_tokens(num_decode, context)
    assert SMALLEST_CHUNK <= num_tokens <= MIN_CHUNK
    seconds = decode_ms / 1000 + num_tokens * each
    assert num_tokens == SMALLEST_CHUNK or seconds <= 1.01 * STRETCH * FULL_SPEED_TOKENS * 0.004


def test_a_chunk_between_decodes_fits_into_the_remaining_time() -> None:
    pacer = Pacer(0.001, max_mixed_tokens=63, target_seconds=0.128)
    assert pacer.mixes(63)
    assert not pacer.mixes(64)
    for _ in range(20):
        pacer.observe(40, 0, 0, 0.030)
    assert pacer.num_prefill_tokens(40) == pytest.approx(98, abs=1)


def test_a_given_target_is_met_for_every_context() -> None:
    """A given target is not stretched."""

    def seconds(tokens: int, context: int) -> float:
        return 0.02 + tokens * (0.002 + 0.001 * context / 1024)

    pacer = Pacer(0.0025, max_mixed_tokens=0, target_seconds=0.3)
    context, late = 0, 0
    for step in range(60):
        pacer.observe(6, 0, 0, 0.03)
        chunk = pacer.num_prefill_tokens(6, context)
        took = seconds(chunk, context)
        late += step > 5 and took + 0.03 > 1.05 * 0.3
        assert step < 5 or took + 0.03 > 0.8 * 0.3, "steps use the time of the target"
        pacer.observe(0, chunk, chunk * context, took)
        context = (context + chunk) % 4096
    assert not late


def test_prompts_advance_even_if_the_target_cannot_be_met() -> None:
    assert Pacer(0.01, target_seconds=0.001).num_prefill_tokens(8) == SMALLEST_CHUNK


def test_a_new_prompt_starts_with_the_chunk_of_an_empty_context() -> None:
    pacer = Pacer(0.002)
    for context in range(0, 4096, 64):
        pacer.observe(0, 64, 64 * context, 64 * (0.002 + 0.001 * context / 1024))
    assert pacer.num_prefill_tokens(0, context=4096) < 0.6 * pacer.num_prefill_tokens(0, context=0)


def test_other_work_gets_the_time_that_decodes_leave_of_the_target() -> None:
    pacer = Pacer(0.001)
    assert pacer.spare_seconds == pytest.approx(0.001 * FULL_SPEED_TOKENS)
    for _ in range(20):
        pacer.observe(8, 0, 0, 0.05)
    assert pacer.spare_seconds == pytest.approx(0.001 * FULL_SPEED_TOKENS - 0.05, rel=0.01)
    for _ in range(20):
        pacer.observe(8, 0, 0, 0.5)
    assert pacer.spare_seconds == 0
