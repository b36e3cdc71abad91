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


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises ApiError 408 if nothing arrives for STALL_SECONDS, or if the body is STALL_SECONDS later than at
    MIN_BYTES_PER_SECOND. Raises RequestEntityTooLarge beyond the app's MAX_CONTENT_LENGTH.
    """
    pieces: list[bytes] = []
    num_bytes = 0
    began = trio.current_time()
    while True:
        slowest = began + num_bytes / MIN_BYTES_PER_SECOND
        with trio.move_on_at(min(trio.current_time(), slowest) + STALL_SECONDS):
            try:
                pieces.append(await anext(request.body))
            except StopAsyncIteration:
                return b"".join(pieces)
            num_bytes += len(pieces[-1])
            if num_bytes > (request.max_content_length or MAX_BODY_BYTES):  # Quart compares only what was not read yet
                raise RequestEntityTooLarge
            continue
        raise ApiError(408, "The request body did not arrive in time.", code="request_timeout")
