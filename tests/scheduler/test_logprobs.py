"""Log probabilities, compared with a plain log-softmax in double precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.failures import InvalidLogitsError
from scheduler.logprobs import UNLIKELY, log_probabilities


@given(seed=st.integers(0, 1000), size=st.integers(1, 300), top=st.integers(0, 25))
def test_log_probabilities_equal_a_plain_log_softmax(seed: int, size: int, top: int) -> None:
    random = np.random.default_rng(seed)
    row = random.normal(0, 4, size).astype(np.float32)
    token = int(random.integers(size))
    plain = row.astype(np.float64)
    plain -= np.log(np.exp(plain - plain.max()).sum()) + plain.max()
    logprob, best = log_probabilities(row, token, top)
    assert logprob == pytest.approx(plain[token], abs=1e-4)
    assert [other for other, _ in best] == np.argsort(-plain, kind="stable")[:top].tolist()
    assert [value for _, value in best] == pytest.approx(-np.sort(-plain)[:top], abs=1e-4)


def test_ties_are_sorted_by_token() -> None:
    _, best = log_probabilities(np.zeros(10, np.float32), 0, 3)
    assert len(best) == 3
    assert [token for token, _ in best] == sorted(token for token, _ in best)


def test_an_impossible_token_has_the_lowest_log_probability() -> None:
    row = np.array([0.0, -np.inf], np.float32)
    assert log_probabilities(row, 1, 2) == (UNLIKELY, [(0, 0.0), (1, UNLIKELY)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_invalid_row_is_an_error(value: float) -> None:
    row = np.zeros(50, np.float32)
    row[7] = value
    with pytest.raises(InvalidLogitsError):
        log_probabilities(row, 3, 2)
