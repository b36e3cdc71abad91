"""Texts whose likely continuation repeats them."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import pytest

from bench.repeats import NEW_NAME, OLD_NAME, edited_file, question, quoted_document, repeated_share

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer


def test_the_new_file_begins_as_the_old_one_with_another_name() -> None:
    text = edited_file(1930, Random(1))
    _, old, new = text.split("```python\n")
    old = old.partition("```")[0]
    assert OLD_NAME not in new.replace(f"`{OLD_NAME}`", "")
    assert new.count(f"{NEW_NAME}.") >= 8, "the model has seen the change"
    begun = new.rstrip("\n")
    assert old.replace(f"{OLD_NAME}.", f"{NEW_NAME}.").startswith(begun)
    assert len(begun) < len(old) / 3, "there is much left to repeat"


Maker = Callable[[int, Random], str]


@pytest.mark.parametrize("make", [edited_file, quoted_document, question])
def test_texts_follow_from_the_seed_and_have_about_the_wanted_length(tokenizer: "Tokenizer", make: Maker) -> None:
    assert make(900, Random(1)) == make(900, Random(1)) != make(900, Random(2))
    for length in (60, 900, 2000) if make is question else (900, 2000):
        tokens = len(tokenizer.encode(make(length, Random(1)), parse_special=True))
        assert abs(tokens - length) < 0.1 * length, (make.__name__, length, tokens)


def test_an_answer_continues_a_quote() -> None:
    documents, _, answer = quoted_document(1130, Random(3)).rpartition("Answer: ")
    quoted = answer.split("\n\n", 1)[1].rstrip("\n")
    assert documents.count(quoted) == 1


@pytest.mark.parametrize(
    ("answer", "share"),
    [("a b c d e", 1.0), ("a b c d x", 0.5), ("x y z u v", 0.0), ("a b c", None), ("", None)],
)
def test_the_share_of_an_answer_that_is_repeated(answer: str, share: float | None) -> None:
    assert repeated_share("0 a b c d e f", answer) == share
