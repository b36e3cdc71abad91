"""Two answers are alike if only rounding distinguishes them."""

import math

import numpy as np
import pytest

from tests.zoo.likeness import Scale, difference, distances, scale_of
from tests.zoo.served import Answer

SCALE = Scale("one token", 0.01)


def answer(*rows: list[float]) -> Answer:
    """The greedy answer of a model with these logits."""
    made = Answer()
    for row in rows:
        logits = np.array(row, np.float32)
        logprobs = logits - np.log(np.exp(logits).sum())
        best = [(int(token), float(logprobs[token])) for token in np.argsort(-logits)[:2]]
        made.tokens.append(best[0][0])
        made.logprobs.append((best[0][1], best))
        made.logits.append(logits)
    return made


def test_rounding_is_no_difference() -> None:
    assert difference(answer([1, 2, 3]), answer([1.001, 2, 3]), SCALE) == ""
    assert difference(answer([1, 2, 3], [3, 2, 1]), answer([1, 2, 3], [3, 2, 1.001]), SCALE) == ""


def test_the_first_rule_sees_log_probabilities_and_tokens() -> None:
    blind = Scale("", math.inf)
    assert "log probability" in difference(answer([1, 2, 3]), answer([1, 2, 4]), blind)
    assert "leads by" in difference(answer([1, 2, 3]), answer([1, 3, 2]), blind)
    assert difference(answer([1, 2.99, 3]), answer([1, 3, 2.99]), blind) == ""


def test_the_second_rule_sees_the_logits_of_every_token() -> None:
    assert "logits of token 0" in difference(answer([1, 2, 3]), answer([1, 2.03, 3.03]), SCALE)
    assert "logits of token 1" in difference(answer([1, 2, 3], [3, 2, 1]), answer([1, 2, 3], [3, 2, 1.1]), SCALE)
    assert difference(answer([1, 2, 3], [3, 2, 1]), answer([1, 2, 3.001], [3, 2, 1]), SCALE) == ""


def test_values_that_are_not_numbers_differ() -> None:
    broken = answer([1, 2, 3])
    broken.logits = [np.full(3, np.nan, np.float32)]
    assert "logits of token 0" in difference(answer([1, 2, 3]), broken, SCALE)


def test_errors_differ() -> None:
    assert difference(answer([1, 2, 3]), Answer(error="too long"), SCALE) == "error: too long"
    assert difference(answer([1, 2, 3]), Answer(), SCALE) == "no answer"


def test_the_limit_lies_between_noise_and_control() -> None:
    scale = scale_of(0.16, {"one token": 0.2, "8 tokens": 1.0})
    assert (scale.notices, round(scale.limit, 6)) == ("8 tokens", 0.4)
    assert scale_of(0.01, {"one token": 0.02}) == Scale("", math.inf)


def test_rows_after_different_tokens_are_not_compared() -> None:
    assert distances(answer([1, 2, 3], [1, 2, 3]), answer([1, 2, 3], [1, 2, 4])) == [0, pytest.approx(3**-0.5)]
    assert distances(answer([1, 2, 3], [1, 2, 3]), answer([1, 3, 3], [1, 2, 4]))[1:] == []
