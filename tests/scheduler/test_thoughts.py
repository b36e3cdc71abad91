"""A limit on reasoning is exact: at most so many tokens, then the end mark, whatever the model wants to write."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.failures import RequestError
from scheduler.messages import ThoughtLimit
from scheduler.thoughts import Mask, ThoughtCounter, with_forced
from tests.scheduler.fakes import EOG, System, next_token

BEGIN, END = "<think>", "</think>"
PIECES = [b"", b"<", b"</", b"think", b">", b"a", b" b", b"\n", b"<think>", b"</think>", b"></", b">c", b" </think> d"]
PIECES += [b"\xe2", b"\x82", b"\xac", b"[", b"/"]
FORCED = [2, 3, 4]
"""The tokens of the end mark."""
CONTROL = [9]
"""The same mark as one token."""


def piece(token: int) -> bytes:
    return PIECES[token % len(PIECES)]


def text_of(tokens: Iterable[int]) -> bytes:
    return b"".join(map(piece, tokens))


TEXT_MARK = [16, 5, 6]
"""The tokens of a mark that begins the text of an answer."""


def limit(
    budget: int, *, end: list[int] = FORCED, is_open: bool = True, anywhere: bool = False, then: Iterable[int] = ()
) -> ThoughtLimit:
    return ThoughtLimit(budget, end, [BEGIN], [END], is_open, anywhere, list(then))


def written(given: ThoughtLimit, wanted: Iterable[int]) -> tuple[list[int], list[int]]:
    """The tokens of an answer of a model that wants these, and those of them that it could not choose."""
    counter = ThoughtCounter(given, piece)
    tokens, forced = [], []
    for want in wanted:
        while counter.forced is not None:
            forced.append(counter.forced)
            tokens.append(counter.forced)
            counter.accept(counter.forced)
        tokens.append(want)
        counter.accept(want)
    return tokens, forced


def spent(given: ThoughtLimit, tokens: list[int]) -> tuple[int, int]:
    """The reasoning tokens of an answer, counted from its whole text, and the number of its thoughts."""
    text, place, is_open = text_of(tokens), 0, given.is_open
    spans: list[tuple[int, int]] = []
    while True:
        if not is_open:
            begin = text.find(BEGIN.encode(), place)
            if begin < 0 or not (given.anywhere or (not spans and not place and not text[:begin].strip())):
                break
            place = begin + len(BEGIN)
        end = text.find(END.encode(), place)
        spans.append((place, len(text) + 1 if end < 0 else end + len(END)))
        if end < 0:
            break
        place, is_open = end + len(END), False
    ends = accumulate(len(piece(token)) for token in tokens)
    places = pairwise([0, *ends])
    return sum(any(first <= a and b < last for first, last in spans) for a, b in places), len(spans)


@given(
    st.integers(0, 6),
    st.sampled_from([FORCED, CONTROL]),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=40),
)
def test_no_answer_has_more_reasoning_than_its_budget(
    budget: int, end: list[int], is_open: bool, anywhere: bool, wanted: list[int]
) -> None:
    given = limit(budget, end=end, is_open=is_open, anywhere=anywhere)
    tokens, forced = written(given, wanted)
    count, thoughts = spent(given, tokens)
    late = 3 * thoughts if b"\xe2" in text_of(wanted) else 0
    """Tokens that complete characters."""
    assert count - len(forced) <= budget + late
    if not anywhere and forced:
        position = len(tokens) - tokens[::-1].index(forced[-1])
        assert len(forced) <= len(end)
        assert END.encode() in text_of(tokens[:position])


def test_a_thought_has_exactly_its_budget() -> None:
    for budget in range(9):
        tokens, _ = written(limit(budget), [5] * 12)
        assert tokens == [5] * budget + FORCED + [5] * (12 - budget)


def test_a_model_that_ends_its_thought_in_time_is_free() -> None:
    for wanted in ([5, 2, 3, 4, 5], [5, 9, 5, 5, 5, 5], [5, 12, 6, 6, 6, 6], [5, 1, 17, 3, 11, 5]):
        assert written(limit(5), wanted) == (wanted, [])


def test_the_prompt_or_the_answer_may_begin_a_thought() -> None:
    assert written(limit(2, is_open=False), [8, 5, 5, 5])[0] == [8, 5, 5, *FORCED, 5]
    assert written(limit(2, is_open=False), [7, 1, 3, 4, 5, 5, 5])[0] == [7, 1, 3, 4, 5, 5, *FORCED, 5]
    assert written(limit(0, is_open=False), [8, 5])[0] == [8, *FORCED, 5]
    assert written(limit(0), [5])[0] == [*FORCED, 5]


def test_text_is_free_unless_thoughts_may_begin_in_it() -> None:
    assert written(limit(1, is_open=False), [5, 8, 5, 5, 5]) == ([5, 8, 5, 5, 5], [])
    assert written(limit(1, is_open=False, anywhere=True), [5, 8, 5, 5])[0] == [5, 8, 5, *FORCED, 5]


def test_all_thoughts_of_an_answer_share_the_budget() -> None:
    given = limit(3, anywhere=True)
    assert written(given, [5, 9, 5, 8, 5, 5, 8, 5])[0] == [5, 9, 5, 8, 5, 5, *FORCED, 8, *FORCED, 5]


def test_a_model_cannot_begin_thoughts_without_end() -> None:
    given = limit(2, anywhere=True, then=TEXT_MARK)
    tokens, _ = written(given, [5, 5, 8, 8, 7])
    assert tokens == [5, 5, *FORCED, 8, *FORCED, *TEXT_MARK, 8, *FORCED, *TEXT_MARK, 7]
    assert written(given, [5, 9, 8, 5, 7, 8, 7])[0] == [5, 9, 8, 5, *FORCED, 7, 8, *FORCED, *TEXT_MARK, 7]
    assert written(limit(0, then=TEXT_MARK), [5, 8, 5])[0] == [*FORCED, 5, 8, 5], "no other thought may begin"


def test_a_grammar_may_refuse_the_mark_of_the_text() -> None:
    for allowed in (7, 8):
        counter = ThoughtCounter(limit(0, anywhere=True, then=TEXT_MARK), piece)
        for token in [*FORCED, 8, *FORCED, TEXT_MARK[0]]:
            counter.accept(token)
        assert chosen(counter, allowed, np.array([1 << allowed], np.int32)) == allowed
        counter.accept(allowed)
        assert counter.forced == (FORCED[0] if allowed == 8 else None), "another thought is ended, too"


def test_a_mark_that_the_model_has_begun_is_completed() -> None:
    assert written(limit(3), [5, 5, 2, 5])[0] == [5, 5, 2, 3, 4, 5]
    assert written(limit(3), [5, 2, 3, 5])[0] == [5, 2, 3, 4, 5]
    assert written(limit(3), [5, 5, 1, 5])[0] == [5, 5, 1, *FORCED, 5], "no token of the mark begins after '<'"


def test_a_character_is_completed_before_the_mark() -> None:
    assert written(limit(2), [5, 13, 14, 15, 5])[0] == [5, 13, 14, 15, *FORCED, 5]
    assert written(limit(2), [5, *[13] * 9])[0] == [5, *[13] * 4, *FORCED, *[13] * 5], "a broken one ends the wait"


def test_a_mark_that_the_grammar_does_not_allow_is_not_forced() -> None:
    counter = ThoughtCounter(limit(0), piece)
    allows, forbids = np.array([1 << FORCED[0]], np.int32), np.array([1 << 5], np.int32)
    assert chosen(counter, 5, allows) == FORCED[0]
    assert chosen(counter, 5, None) == FORCED[0]
    assert chosen(counter, 5, forbids) == 5
    counter.accept(5)
    assert counter.forced is None
    assert chosen(None, 5, allows) == 5


def chosen(counter: ThoughtCounter | None, sampled: int, mask: Mask | None) -> int | RequestError:
    other = ThoughtCounter(limit(5), piece)
    [token, _] = with_forced([counter, other], [sampled, 6], [mask, None])
    return token


def test_a_row_that_failed_keeps_its_error() -> None:
    error = RequestError("no logits")
    assert with_forced([ThoughtCounter(limit(0), piece)], [error]) == [error]


def tokens_of(system: System, *, answer: list[int] | None = None, logprobs: int | None = None) -> list[int]:
    system.submit(1, [1, 2, 3], 12, thoughts=limit(4), answer=answer or (), logprobs=logprobs)
    system.run()
    return [*(answer or ()), *system.tokens[1]]


def plain(tokens: list[int]) -> int:
    return 5 + next_token(tokens) % 2


@pytest.fixture
def system() -> System:
    system = System(piece=piece)
    system.runner.sample = plain
    return system


def test_the_scheduler_forces_the_mark_and_the_model_goes_on_from_it(system: System) -> None:
    expected = [1, 2, 3]
    for position in range(12):
        expected.append(FORCED[position - 4] if 4 <= position < 7 else plain(expected))
    assert tokens_of(system) == expected[3:]


@pytest.mark.parametrize("several", [1, 2, 3, 4, 5])
def test_the_mark_is_forced_whatever_a_step_returns(system: System, several: int) -> None:
    other = System(piece=piece)
    other.runner.sample = plain
    other.runner.num_tokens = lambda _: several
    assert tokens_of(other) == tokens_of(system)


@pytest.mark.parametrize("length", range(1, 12))
def test_another_engine_continues_at_any_token(system: System, length: int) -> None:
    whole = tokens_of(system)
    other = System(piece=piece)
    other.runner.sample = plain
    assert tokens_of(other, answer=whole[:length]) == whole


def test_each_forced_token_has_its_log_probability(system: System) -> None:
    tokens = tokens_of(system, logprobs=0)
    assert [-logprob for output in system.outputs[1] for logprob, _ in output.logprobs] == tokens


def test_an_end_in_a_thought_ends_the_answer(system: System) -> None:
    system.runner.sample = lambda known: EOG if len(known) == 5 else 5
    assert tokens_of(system) == [5, 5, EOG]
