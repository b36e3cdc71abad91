"""The drafter that copies what followed the same tokens before."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.drafts.drafter import Draft
from scheduler.drafts.suffix import MAX_INDEXED, SuffixDrafter
from scheduler.messages import Submit
from scheduler.sequence import Sequence
from tests.scheduler.fakes import prompt


def sequence(number: int, tokens: list[int], salt: str = "") -> Sequence:
    return Sequence(Submit(number, tokens, 1000, cache_salt=salt), number)


def draft(drafter: SuffixDrafter, each: Sequence, most: int = 8) -> Draft:
    (found,) = drafter.draft([each], [most])
    return found


def test_an_answer_that_repeats_its_prompt_is_drafted() -> None:
    drafter, each = SuffixDrafter(), sequence(1, [*prompt(100, 50), 7])
    assert not draft(drafter, each).tokens
    estimates = []
    for number, token in enumerate(prompt(100, 49), 1):
        each.append(token)
        found = draft(drafter, each)
        assert found.tokens == ([] if number < 3 else [*prompt(100, 50), 7, *prompt(100, 50)][number:][:8])
        estimates.append(found.estimates[:1])
    assert estimates[2:] == sorted(estimates[2:])
    assert estimates[2] < [0.8] < [0.98] < estimates[-1]


def test_tokens_at_which_texts_fork_are_doubtful() -> None:
    drafter = SuffixDrafter()
    for number, branch in enumerate((80, 81, 80)):
        draft(drafter, sequence(number, [*prompt(100, 20), branch, *prompt(200, 20)]))
    found = draft(drafter, sequence(3, prompt(100, 10)), 20)
    assert found.tokens == [*prompt(110, 10), 80, *prompt(200, 9)]
    doubtful = found.estimates[10]
    assert doubtful < 0.8 < min(found.estimates[:10])
    assert found.estimates[11:] == sorted(found.estimates[11:]), "behind it, the text goes on"
    assert found.estimates[11] > 0.95


def test_a_text_of_another_salt_is_no_fork() -> None:
    drafter = SuffixDrafter()
    for number, (branch, salt) in enumerate(((80, ""), (81, "other"))):
        draft(drafter, sequence(number, [*prompt(100, 20), branch], salt))
    found = draft(drafter, sequence(2, prompt(100, 10)), 20)
    assert found.tokens == [*prompt(110, 10), 80]
    assert found.estimates == sorted(found.estimates)


def test_after_a_difference_it_finds_its_place_again() -> None:
    drafter, each = SuffixDrafter(), sequence(1, prompt(100, 50))
    draft(drafter, each)
    for token in [*prompt(100, 10), 7, 8, *prompt(112, 2)]:
        each.append(token)
        found = draft(drafter, each)
    assert not found.tokens
    each.append(114)
    assert draft(drafter, each).tokens == prompt(115, 8)


def test_the_longest_match_wins_and_among_equals_the_latest() -> None:
    drafter = SuffixDrafter()
    tokens = [1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 8, 2, 3, 4, 70]
    each = sequence(1, [*tokens, 1, 2, 3, 4])
    draft(drafter, each)
    other = sequence(2, [*tokens, 5, 2, 3, 4])
    draft(drafter, other)
    each.append(50)
    other.append(70)
    assert draft(drafter, sequence(3, [1, 2, 3, 4]), 1).tokens == [50]
    assert draft(drafter, sequence(4, [0, 2, 3, 4]), 1).tokens == [70]


def test_an_answer_is_drafted_from_an_earlier_one_of_the_same_salt_only() -> None:
    drafter = SuffixDrafter()
    first = sequence(1, prompt(100, 20), "a")
    draft(drafter, first)
    for token in prompt(500, 10):
        first.append(token)
    drafter.ended(first)
    assert draft(drafter, sequence(2, prompt(100, 20), "a"), 20).tokens == prompt(500, 10)
    assert not draft(drafter, sequence(3, prompt(100, 20), "b"), 20).tokens
    assert not draft(drafter, sequence(4, prompt(100, 20)), 20).tokens


def test_a_sequence_follows_one_that_runs_ahead_of_it() -> None:
    drafter, ahead, behind = SuffixDrafter(), sequence(1, prompt(100, 20)), sequence(2, prompt(100, 20))
    for token in prompt(500, 12):
        ahead.append(token)
        drafter.draft([ahead, behind], [4, 4])
    assert draft(drafter, behind, 20).tokens == prompt(500, 12)


def test_a_repetition_is_drafted_as_often_as_there_is_room() -> None:
    drafter, each = SuffixDrafter(), sequence(1, [1, 2, 3, 1, 2, 3, 1, 2])
    draft(drafter, each)
    each.append(3)
    assert draft(drafter, each, 7).tokens == [1, 2, 3, 1, 2, 3, 1]


def test_a_long_prompt_is_indexed_in_several_steps() -> None:
    drafter, each = SuffixDrafter(), sequence(1, prompt(0, 3 * MAX_INDEXED))
    draft(drafter, each)
    late = prompt(2 * MAX_INDEXED, 10)
    assert not draft(drafter, sequence(2, late)).tokens
    for _ in range(3):
        draft(drafter, each)
    assert draft(drafter, sequence(3, late)).tokens == prompt(2 * MAX_INDEXED + 10, 8)


def test_a_prefix_that_is_in_the_index_is_not_indexed_again() -> None:
    drafter = SuffixDrafter()
    first = sequence(1, [*prompt(0, 500), 7])
    draft(drafter, first)
    second = sequence(2, prompt(0, 520))
    second.cached_tokens = 500
    draft(drafter, second)
    assert drafter.num_tokens == 498 + 20
    assert draft(drafter, sequence(3, prompt(100, 10)), 4).tokens == prompt(110, 4)
    assert draft(drafter, sequence(4, prompt(505, 10)), 4).tokens == prompt(515, 4)


def test_the_index_is_bounded() -> None:
    drafter = SuffixDrafter(max_tokens=1000)
    for number in range(40):
        each = sequence(number, prompt(10_000 * number, 200))
        draft(drafter, each)
        drafter.ended(each)
        assert drafter.num_tokens <= 1200
    assert drafter.num_keys <= 1500
    assert not draft(drafter, sequence(90, prompt(10_000, 20))).tokens, "the oldest one is forgotten"
    assert draft(drafter, sequence(91, prompt(390_000, 20))).tokens


def test_what_is_useful_is_forgotten_last() -> None:
    drafter = SuffixDrafter(max_tokens=1000)
    for number in range(40):
        each = sequence(number, prompt(10_000 * number, 200))
        draft(drafter, each)
        drafter.ended(each)
        again = sequence(1000 + number, prompt(20, 10))
        assert draft(drafter, again).tokens == prompt(30, 8)
        drafter.ended(again)


@given(st.integers(0, 1 << 30), st.integers(2, 6), st.integers(50, 400))
def test_each_draft_followed_the_same_three_tokens(seed: int, vocabulary: int, max_tokens: int) -> None:
    """With few different tokens, many matches begin, hold for a while and end. Sequences come, go and come back."""
    random, drafter = Random(seed), SuffixDrafter(max_tokens=max_tokens)
    running: list[Sequence] = []
    texts: list[tuple[str, Sequence]] = []
    for number in range(60):
        if len(running) < 4:
            salt = random.choice(["", "a"])
            running.append(sequence(number, [random.randrange(vocabulary) for _ in range(random.randint(1, 40))], salt))
            texts.append((salt, running[-1]))
        for each in running:
            for _ in range(random.randint(0, 3)):
                each.append(random.randrange(vocabulary))
        for each, found in zip(running, drafter.draft(running, [5] * len(running)), strict=True):
            assert len(found.tokens) <= 5
            if found.tokens:
                wanted = each.tokens(each.num_known - 3, each.num_known) + found.tokens[0].to_bytes(4, "little")
                salt = each.cache_salt.decode()
                assert any(wanted in other.known for name, other in texts if name == salt)
        if random.random() < 0.2:
            drafter.ended(running.pop(random.randrange(len(running))))
    for each in running:
        drafter.ended(each)
