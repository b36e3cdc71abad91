"""Measures of fairness."""

import pytest

from bench.shares import jain, largest_gap, service_bound


def test_jains_index() -> None:
    assert jain([5.0] * 8) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([2.0, 1.0]) == pytest.approx(0.9)
    assert jain([0.0, 0.0]) == 1.0


def test_the_largest_gap_is_that_of_any_interval() -> None:
    assert largest_gap([1, 1, 1], [1, 1, 1]) == 0
    assert largest_gap([5, 0, 0, 0], [0, 0, 0, 5]) == 5  # it began and ended at equal service
    assert largest_gap([3, 0, 0, 4], [0, 6, 0, 0]) == 6  # neither at the start nor at the end
    assert largest_gap([], []) == 0


def test_the_bound_counts_a_prompt_the_running_answers_and_the_quantum() -> None:
    assert service_bound(90, 1024, 100) == 2 * 1214
