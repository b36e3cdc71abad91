"""Buckets of a minute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.serving.bucket import Bucket, duration

USES = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), max_size=30)


@given(st.integers(50, 500), USES)
def test_at_most_a_full_bucket_and_its_refill_are_used(size: int, uses: list[tuple[int, float]]) -> None:
    """Each use waits until there is room. No period has more than the size and what is refilled in it."""
    bucket, now, used = Bucket(size), 1000.0, []
    for num, pause in uses:
        now += pause
        now += bucket.seconds_until(num, now) + 1e-6
        assert bucket.seconds_until(num, now) == 0
        assert bucket.room(now) >= num
        bucket.take(num, now)
        used.append((now, num))
    for first, (begin, _) in enumerate(used):
        for last in range(first, len(used)):
            total = sum(num for _, num in used[first : last + 1])
            assert total <= size + (used[last][0] - begin) * size / 60 + 1e-3


def test_a_new_bucket_is_full() -> None:
    bucket = Bucket(10)
    assert (bucket.room(0.0), bucket.used(0.0), bucket.seconds_until_full(0.0), bucket.is_full(0.0)) == (10, 0, 0, True)


def test_more_than_there_is_may_be_used() -> None:
    bucket = Bucket(60)
    bucket.take(90, 0.0)
    assert (bucket.room(0.0), bucket.used(0.0)) == (0, 90)
    assert bucket.seconds_until(1, 0.0) == pytest.approx(31.0)
    assert bucket.seconds_until_full(0.0) == pytest.approx(90.0)
    assert bucket.room(45.0) == 15


def test_what_is_given_back_is_free_again() -> None:
    bucket = Bucket(2)
    bucket.take(2, 0.0)
    assert bucket.seconds_until(1, 0.0) == pytest.approx(30.0)
    bucket.give_back(1)
    assert bucket.seconds_until(1, 0.0) == 0
    assert bucket.room(0.0) == 1


def test_another_size_keeps_the_used_share() -> None:
    bucket = Bucket(60)
    bucket.take(30, 0.0)
    bucket.size = 600
    assert bucket.room(0.0) == 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.006, "6ms"), (0.9999, "1s"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"), (390.5, "6m30.5s")],
)
def test_durations_have_openais_form(seconds: float, text: str) -> None:
    assert duration(seconds) == text
