"""Suspects of failed steps are tried in smaller groups, and others take turns with them."""

from itertools import count
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.suspects import MAX_FAILURES_ALONE, Suspects


def steps(suspects: Suspects, ready: list[int], guilty: set[int]) -> list[list[int]]:
    """Run steps until no request is suspected. Returns the requests of each step. Guilty requests are removed."""
    steps = []
    for _ in count():
        tried = sorted(suspects.choose(ready))
        steps.append(tried)
        if guilty & set(tried):
            found = suspects.failed(tried)
            if found is not None:
                assert found in guilty
                ready.remove(found)
        else:
            for request in tried:
                suspects.passed(request, sampled=True)
        if not suspects:
            return steps
    raise AssertionError


def test_one_guilty_request_is_found_by_halves() -> None:
    suspects, ready = Suspects(), list(range(8))
    assert steps(suspects, ready, {5}) == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [0, 1, 2, 3],  # no longer suspects: they take turns with the suspects
        [4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5],
        [0, 1, 2, 3],
        [4],
        [0, 1, 2, 3, 4],
        [5],
        [5],
        [0, 1, 2, 3, 4],
        [6, 7],
    ]
    assert 5 not in ready


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=4))
def test_the_guilty_are_found_in_few_steps_and_nobody_else(num_requests: int, guilty: set[int]) -> None:
    ready = list(range(num_requests))
    present = guilty & set(ready)
    tried = steps(Suspects(), ready, guilty)
    assert set(ready) == set(range(num_requests)) - guilty
    num_failed = sum(bool(present & set(step)) for step in tried)
    assert num_failed <= len(present) * (ceil(log2(num_requests)) + MAX_FAILURES_ALONE)


@given(st.integers(2, 20), st.data())
def test_requests_that_fail_only_together_both_go_on(num_requests: int, data: st.DataObject) -> None:
    """For example, because a step with both is too large."""
    pair = data.draw(st.sets(st.integers(0, num_requests - 1), min_size=2, max_size=2))
    suspects, ready, advanced = Suspects(), list(range(num_requests)), set()
    for _ in range(3 * num_requests):
        tried = sorted(suspects.choose(ready))
        if pair <= set(tried):
            assert suspects.failed(tried) is None
        else:
            for request in tried:
                suspects.passed(request, sampled=True)
            advanced.update(tried)
    assert advanced == set(ready)


def test_one_failure_alone_may_be_chance() -> None:
    suspects = Suspects()
    for _ in range(3):
        assert suspects.failed([1]) is None
        assert suspects.choose([1, 2]) == {1}, "it is tried again at once"
        suspects.passed(1, sampled=True)
    assert not suspects


def test_suspects_of_a_crash_run_alone_one_after_the_other_until_they_get_a_token() -> None:
    suspects = Suspects()
    suspects.add(7)
    suspects.add(8)
    seen = []
    for sampled in (False, False, False, False, True, False, False):
        tried = suspects.choose([7, 8, 9])
        seen.append(tried)
        for request in tried:
            suspects.passed(request, sampled=sampled)
    assert [sorted(tried) for tried in seen] == [[7], [9], [7], [9], [7], [7, 9], [8]]


def test_a_suspect_of_several_crashes_gets_more_tokens_alone() -> None:
    suspects = Suspects()
    suspects.add(7, 3)
    seen = []
    for _ in range(6):
        tried = sorted(suspects.choose([7, 9]))
        seen.append(tried)
        for request in tried:
            suspects.passed(request, sampled=True)
    assert seen == [[7], [9], [7], [9], [7], [7, 9]]


def test_suspects_that_are_not_ready_do_not_stop_others() -> None:
    suspects = Suspects()
    suspects.add(7)
    for _ in range(3):
        assert suspects.choose([8, 9]) == [8, 9]
    suspects.add(8)
    assert [set(suspects.choose([8])) for _ in range(3)] == [{8}] * 3


@pytest.mark.parametrize("ended", [[0], [0, 1], [2, 3], [0, 1, 2, 3]])
def test_requests_that_end_are_forgotten(ended: list[int]) -> None:
    suspects = Suspects()
    suspects.failed([0, 1, 2, 3])
    for request in ended:
        suspects.discard(request)
    left = [request for request in range(4) if request not in ended]
    tried = [set(suspects.choose(left)) for _ in range(4)] if left else []
    assert all(tried), "each step computes something"
    for request in left:
        suspects.passed(request, sampled=True)
    assert not suspects
