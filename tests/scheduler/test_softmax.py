"""Weights of whole rows in arrays that are kept, and draws from them."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.softmax import at_least, draw_from, draw_from_row, kept_array, total_of, weights_of
from tests.scheduler.rows import ROWS, Row, softmax


@given(row=ROWS, temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_weights_are_the_softmax(row: Row, temperature: float) -> None:
    weights = weights_of(row, row.max(), 1 / temperature)
    assert weights / total_of(weights) == pytest.approx(softmax(row.astype(np.float64) / temperature), rel=1e-4)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 49_152, 262_144])
def test_the_total_is_as_exact_as_in_double_precision(size: int) -> None:
    row = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    weights = weights_of(row, row.max())
    assert total_of(weights) == pytest.approx(float(weights.sum(dtype=np.float64)), rel=3e-7)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_a_draw_from_a_row_is_the_draw_from_its_weights(size: int) -> None:
    row = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    weights = weights_of(row, row.max())
    ends = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    for uniform in (ends - weights / weights.sum() / 2)[:: max(1, size // 100)]:
        assert draw_from_row(weights, float(uniform)) == draw_from(weights, float(uniform))


def test_the_positions_that_reach_a_floor() -> None:
    row = np.array([1.0, -np.inf, 3.0, 2.0, 0.1], np.float32)
    assert at_least(row, 1.0).tolist() == [0, 2, 3]
    assert at_least(row, 0.1).tolist() == [0, 2, 3, 4]  # the floor has the precision of the row
    assert at_least(row, -np.inf).tolist() == [0, 1, 2, 3, 4]
    assert at_least(row, 4.0).tolist() == []


def test_an_array_is_kept_for_its_purpose() -> None:
    large = kept_array("a test", 1000)
    large[:] = 7.0
    small = kept_array("a test", 10)
    assert len(small) == 10
    assert np.shares_memory(small, large)
    assert not np.shares_memory(kept_array("another test", 1000), large)


def test_threads_do_not_share_arrays() -> None:
    mine = kept_array("a test", 100)
    other = []
    thread = threading.Thread(target=lambda: other.append(kept_array("a test", 100)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, other[0])
