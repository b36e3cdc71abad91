"""The header by which a request asks for a stream that can be resumed."""

from typing import Final

from api.errors import ApiError

HEADER: Final = "X-Stream-Resume"
ID_HEADER: Final = "X-Stream-Id"
"""The header of an answer that can be resumed."""
TOO_MANY: Final = "the stream cannot be resumed: too many streams are kept now"
_VALUES: Final = {"1": True, "true": True, "0": False, "false": False}


def wants_resumption(text: str | None) -> bool:
    """`text`: the value of the header; None without it. Raises ApiError 400 if it is neither true nor false."""
    if text is None:
        return False
    found = _VALUES.get(text.lower())
    if found is None:
        message = f"Invalid value for the header {HEADER}: it must be 1, 0, true or false."
        raise ApiError(400, message, param=HEADER, code="invalid_value")
    return found
