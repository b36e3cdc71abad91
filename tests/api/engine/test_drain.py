"""The measured rate at which requests leave."""

import pytest

from api.engine.drain import MEASURED, DrainRate, retry_after


def test_the_rate_of_steady_departures() -> None:
    drain = DrainRate(100.0)
    for number in range(1, 3 * MEASURED):
        drain.left(100.0 + 2 * number)
    now = 100.0 + 2 * (3 * MEASURED - 1)
    assert drain.seconds_until(1, now) == pytest.approx(2.0)
    assert drain.seconds_until(10, now) == pytest.approx(20.0)


def test_the_time_grows_while_nothing_leaves() -> None:
    drain = DrainRate(0.0)
    assert [drain.seconds_until(2, now) for now in (0.0, 1.0, 5.0)] == [0.0, 2.0, 10.0]
    drain.left(5.0)
    assert [drain.seconds_until(1, now) for now in (5.0, 50.0)] == [5.0, 50.0]


def test_time_without_requests_does_not_count() -> None:
    drain = DrainRate(0.0)
    drain.left(1.0)
    drain.restart(1000.0)
    drain.left(1001.0)
    assert drain.seconds_until(1, 1001.0) == 1.0


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.1, 2), (59.5, 60), (1e9, 60)])
def test_the_header_is_bounded(seconds: float, expected: int) -> None:
    assert retry_after(seconds) == expected
