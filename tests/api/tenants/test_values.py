import math
from datetime import datetime

import pytest

from api.tenants.values import checked_name, checked_weight, expiry_of, limit_of, seconds_of, time_text

NOW = datetime(2030, 1, 15, 12).timestamp()


@pytest.mark.parametrize("name", ["a", "alice", "alice.b@example.com", "CI-2_x", "a" * 64])
def test_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "user:a", "a\n", "é", "a" * 65, "owner", "local", "others"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        checked_name(name)


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.001, 1001.0, math.inf, math.nan])
def test_weights_that_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"from 0\.01 to 1000"):
        checked_weight(weight)


@pytest.mark.parametrize(("text", "limit"), [("default", None), ("0", 0), ("12", 12), (str(2**53), 2**53)])
def test_limits(text: str, limit: int | None) -> None:
    assert limit_of(text) == limit


@pytest.mark.parametrize("text", ["", "-1", "1.5", "²", "none", str(2**53 + 1), "9" * 5000, "0" * 5000])
def test_limits_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a whole number"):
        limit_of(text)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400.0), ("12h", 43200.0), ("30d", 2592000.0), ("1w", 604800.0)])
def test_times_from_now(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert expiry_of(text, NOW) == NOW + seconds


def test_dates_last_until_their_end() -> None:
    assert expiry_of("2030-01-15", NOW) == datetime(2030, 1, 16).timestamp()
    assert expiry_of("2030-01-15T13:00", NOW) == datetime(2030, 1, 15, 13).timestamp()
    assert expiry_of("2100-01-01T00:00:00+00:00", NOW) == 4102444800.0
    assert expiry_of("never", NOW) is None


def test_every_time_that_is_accepted_can_be_shown() -> None:
    last = expiry_of("9999-12-31", NOW)
    assert last == expiry_of("9999-12-30", NOW) == datetime(9999, 12, 31).timestamp()
    assert time_text(last).startswith("9999-12-")
    assert time_text(1e15) == time_text(last)
    with pytest.raises(ValueError, match="'999999w' is longer than 36525d"):
        seconds_of("999999w")


@pytest.mark.parametrize("text", ["", "30", "d", "30 d", "-1d", "2030-02-30", "tomorrow", "999999w"])
def test_expiries_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a time from now"):
        expiry_of(text, NOW)


@pytest.mark.parametrize("text", ["2030-01-14", "2030-01-15T11:00", "0d"])
def test_expiries_in_the_past_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is in the past"):
        expiry_of(text, NOW)
