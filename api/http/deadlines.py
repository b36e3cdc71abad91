"""The deadline of a request, from its header or the server's default."""

import re
from typing import Final

from api.engine.deadline import NEVER, Deadline
from api.errors import ApiError

HEADER: Final = "X-Request-Timeout"
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def deadline_of(text: str | None, default: float, arrival: float) -> Deadline:
    """`text`: the value of the header; None without it. `default`: the seconds of a request without it; 0 for no limit.
    `arrival`: on trio's clock.

    Raises ApiError 400 if the header is not a positive number.
    """
    if text is None:
        return Deadline(arrival + default, default) if default else NEVER
    seconds = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not seconds:
        message = (
            f"Invalid value for the header {HEADER}: it must be a number of seconds above 0, such as 30 or 2.5, with "
            "at most 9 digits before the point."
        )
        raise ApiError(400, message, param=HEADER, code="invalid_value")
    return Deadline(arrival + seconds, seconds)
