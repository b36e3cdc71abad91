"""The drafter that follows the request's prediction."""

from scheduler.drafts.prediction import PredictionDrafter
from scheduler.messages import Submit
from scheduler.sequence import Sequence
from tests.scheduler.fakes import prompt

TEXT = prompt(100, 200)


def drafts_of(answer: list[int], prediction: list[int]) -> list[list[int]]:
    """Returns the drafts before each token of the answer."""
    drafter = PredictionDrafter()
    each, other = (
        Sequence(Submit(number, [1, 2, 3], 1000, prediction=prediction * (1 - number)), 0) for number in (0, 1)
    )
    drafts = []
    for token in answer:
        mine, none = drafter.draft([each, other], [5, 5])
        assert not none.tokens, "it has no prediction"
        drafts.append(mine.tokens)
        each.append(token)
    drafter.ended(each)
    return drafts


def test_an_answer_that_is_the_prediction_is_drafted_from_the_beginning() -> None:
    drafts = drafts_of(TEXT, TEXT)
    assert drafts == [TEXT[start : start + 5] for start in range(200)]


def test_the_prediction_ends() -> None:
    assert drafts_of([*TEXT, 1, 2], TEXT)[-2:] == [[], []]


def test_after_a_replaced_token_two_equal_ones_suffice() -> None:
    drafts = drafts_of([*TEXT[:10], 7, *TEXT[11:20]], TEXT)
    assert drafts[10] == TEXT[10:15]
    assert drafts[11:13] == [[], []]
    assert drafts[13:] == [TEXT[start : start + 5] for start in range(13, 20)]


def test_after_removed_and_inserted_tokens_the_place_is_found_again() -> None:
    for answer in (
        [*TEXT[:10], *TEXT[100:110]],
        [*TEXT[:10], *prompt(900, 30), *TEXT[10:20]],
        [*prompt(900, 9), *TEXT],
    ):
        for draft, following in zip(drafts_of(answer, TEXT)[-6:], range(len(answer) - 6, len(answer)), strict=True):
            assert draft[0] == answer[following]


def test_a_prediction_that_is_not_in_order_is_followed_too() -> None:
    assert drafts_of([*TEXT[100:120], *TEXT[:20]], TEXT)[-1][0] == TEXT[19]
