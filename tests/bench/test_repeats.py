"""Texts whose likely continuation repeats them."""

import re
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from bench.repeats import NEW_NAME, edit_turns, question, rag_turns, repeated_share

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer


def test_a_file_is_repeated_with_another_name() -> None:
    prompts = edit_turns(1930, 3, Random(1))
    assert all(later.startswith(earlier) for earlier, later in pairwise(prompts))
    for text in prompts:
        _, *versions = text.split("```python\n")
        first, second = (version.partition("```")[0].rstrip("\n") for version in versions)
        (old,) = re.findall(r"with `(\w+)` renamed", text)
        whole = re.sub(rf"\b{old}\b", NEW_NAME, first)
        assert whole.startswith(second)
        assert second.count(NEW_NAME) >= 1, "the model has seen the change"
        assert len(second) < 0.6 * len(whole), "there is much left to repeat"


Make = Callable[[int, int, Random], list[str]]


@pytest.mark.parametrize("make", [edit_turns, rag_turns])
@pytest.mark.parametrize("length", [900, 1930])
def test_texts_follow_from_the_seed_and_have_about_the_wanted_length(
    tokenizer: "Tokenizer", make: Make, length: int
) -> None:
    assert make(length, 2, Random(1)) == make(length, 2, Random(1)) != make(length, 2, Random(2))
    for seed in range(5):
        tokens = len(tokenizer.encode(make(length, 1, Random(seed))[0], parse_special=True))
        assert 0.75 * length < tokens < 1.1 * length, (make.__name__, length, tokens)


def test_a_question_has_the_wanted_length(tokenizer: "Tokenizer") -> None:
    for length in (60, 900):
        assert len(tokenizer.encode(question(length, Random(1)), parse_special=True)) == pytest.approx(length, rel=0.1)


def test_each_answer_continues_the_quote_of_another_document() -> None:
    prompts = rag_turns(1130, 3, Random(3))
    assert len(set(prompts)) == 3
    documents = {prompt.rpartition("\n\nQuestion: ")[0] for prompt in prompts}
    assert len(documents) == 1, "the documents are cached"
    for prompt in prompts:
        quoted = prompt.rpartition(" says:\n\n")[2]
        assert next(iter(documents)).count(quoted) == 1


@pytest.mark.parametrize(
    ("answer", "share"),
    [("a b c d e", 1.0), ("a b c d x", 0.5), ("x y z u v", 0.0), ("a b c", None), ("", None)],
)
def test_the_share_of_an_answer_that_is_repeated(answer: str, share: float | None) -> None:
    assert repeated_share("0 a b c d e f", answer) == share
