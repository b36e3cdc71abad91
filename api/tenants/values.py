"""The values of a tenant as a user writes them, on the command line and in a keys file."""

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from api.tenants.tenant import KEYLESS, LOCAL, OTHERS, OWNER, Priority

MAX_NAME_LENGTH: Final = 64
MIN_KEY_LENGTH: Final = 20
"""Characters of a key that somebody chose. Shorter ones could be guessed."""
MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 1000.0
MAX_LIMIT: Final = 2**53
PRIORITIES: Final = tuple(each.name.lower() for each in Priority)
MAX_DURATION: Final = timedelta(days=36525)
LAST_DAY: Final = date(9999, 12, 30)
"""The last day that is the same in all time zones. Later days have the same end."""
LAST_TIME: Final = datetime(9999, 12, 30, tzinfo=UTC).timestamp()
RESERVED: Final = frozenset({LOCAL.name, OWNER.name, KEYLESS, OTHERS})
"""Names that the server gives itself."""
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME_LENGTH - 1}}}")
_LIMIT: Final = re.compile(rf"[0-9]{{1,{len(str(MAX_LIMIT))}}}")
_DURATION: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def checked_name(name: str) -> str:
    """The name of a tenant. It has no colon, so it differs from the names of users without keys (`user:...`).

    Raises ValueError if it is not valid.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name of 1 to {MAX_NAME_LENGTH} letters, digits, '.', '_', '@' and '-', "
            "which begins with a letter or a digit"
        )
    if name in RESERVED:
        raise ValueError(f"the server itself uses the name {name!r}")
    return name


def checked_key(key: str) -> str:
    """A key that somebody chose. Raises ValueError if it could be guessed, or if no header can have it."""
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(f"a key has at least {MIN_KEY_LENGTH} characters")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ValueError("a key has printable ASCII characters only, and no spaces at its ends")
    return key


def checked_weight(weight: float) -> float:
    """Raises ValueError if it is not valid."""
    if not (math.isfinite(weight) and MIN_WEIGHT <= weight <= MAX_WEIGHT):
        raise ValueError(f"a weight is a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
    return weight


def priority_of(text: str) -> Priority:
    """Raises ValueError if it is not valid."""
    if text not in PRIORITIES:
        raise ValueError(f"{text!r} is not one of {', '.join(PRIORITIES)}")
    return Priority[text.upper()]


def limit_of(text: str) -> int | None:
    """A limit, of which 0 is none; None for `default`. Raises ValueError if it is not valid."""
    if text == "default":
        return None
    if not _LIMIT.fullmatch(text) or int(text) > MAX_LIMIT:
        raise ValueError(f"{text!r} is neither a whole number of at most {MAX_LIMIT} nor 'default'")
    return int(text)


def expiry_of(text: str, now: float) -> float | None:
    """The time of a text such as `30d`, `2030-01-31` or `2030-01-31T12:00+01:00`, in seconds since the epoch.

    A day lasts until its end. Times without a zone are local. None for `never`. Raises ValueError if the text is not
    valid, or if the time is not after `now`.
    """
    if text == "never":
        return None
    try:
        at = _time_of(text, now)
    except (ValueError, OverflowError, OSError):
        message = (
            f"{text!r} is neither a time from now such as 12h, 30d or 8w, nor a date such as 2030-01-31, nor 'never'"
        )
        raise ValueError(message) from None
    if at <= now:
        raise ValueError(f"{text!r} is in the past")
    return at


def seconds_of(text: str) -> float:
    """The seconds of a text such as `90m`, `12h`, `30d` or `8w`. Raises ValueError if it is not valid, or too long."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 90m, 12h, 30d or 8w")
    duration = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if duration > MAX_DURATION:
        raise ValueError(f"{text!r} is longer than {MAX_DURATION.days}d")
    return duration.total_seconds()


def _time_of(text: str, now: float) -> float:
    if _DURATION.fullmatch(text):
        at = now + seconds_of(text)
        datetime.fromtimestamp(at)  # raises an error if no calendar has it
        return at
    return (
        end_of(date.fromisoformat(text)) if len(text) == len("2030-01-31") else datetime.fromisoformat(text).timestamp()
    )


def end_of(day: date) -> float:
    """The end of a local day, in seconds since the epoch."""
    return datetime.combine(min(day, LAST_DAY) + timedelta(days=1), time()).timestamp()


def time_text(at: float) -> str:
    """A time in seconds since the epoch, as local time with its zone. A time that no calendar has is the last one."""
    return datetime.fromtimestamp(int(min(at, LAST_TIME))).astimezone().isoformat()
