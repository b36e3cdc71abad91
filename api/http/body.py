"""Reads the body of a request, and refuses bodies that are too large or too slow."""

from typing import Final

import trio
from quart import Request
from werkzeug.exceptions import RequestEntityTooLarge

from api.errors import ApiError

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
STALL_SECONDS: Final = 30.0
"""How long a body may send nothing."""
MIN_BYTES_PER_SECOND: Final = 1024
"""The slowest body that is read to its end. Without this rate, one byte every 29 seconds would be progress."""


class Pace:
    """How far a body has arrived, and when it is too late."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self.num_bytes = 0

    @property
    def deadline(self) -> float:
        """Until when the next bytes must arrive: for STALL_SECONDS, or less if the body is later than at
        MIN_BYTES_PER_SECOND.
        """
        slowest = self._began + self.num_bytes / MIN_BYTES_PER_SECOND
        return min(trio.current_time(), slowest) + STALL_SECONDS


def too_slow() -> ApiError:
    return ApiError(408, "The request body did not arrive in time.", code="request_timeout")


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises ApiError 408 if nothing arrives for STALL_SECONDS, or if the body is STALL_SECONDS later than at
    MIN_BYTES_PER_SECOND. Raises RequestEntityTooLarge beyond the app's MAX_CONTENT_LENGTH.
    """
    pieces: list[bytes] = []
    pace = Pace()
    while True:
        with trio.move_on_at(pace.deadline):
            try:
                pieces.append(await anext(request.body))
            except StopAsyncIteration:
                return b"".join(pieces)
            pace.num_bytes += len(pieces[-1])
            if pace.num_bytes > (request.max_content_length or MAX_BODY_BYTES):  # Quart's limit is for unread bytes
                raise RequestEntityTooLarge
            continue
        raise too_slow()
