"""Grammars are made in threads. A small one takes a millisecond, a thousand tools or a large schema take seconds."""

from collections.abc import Callable
from typing import Final

import trio

from api.engine.generation import INVALID_GRAMMAR
from api.errors import ApiError
from api.text.schemas import SchemaError

_limiter: Final = trio.CapacityLimiter(4)
"""More grammars at a time would take the processor from the engine, and the threads from other work."""


async def in_thread(make: Callable[[], str]) -> str:
    """Make a grammar outside of the event loop. A request that is cancelled does not wait for it."""
    return await trio.to_thread.run_sync(make, limiter=_limiter, abandon_on_cancel=True)


def invalid_schema(error: SchemaError, what: str, param: str) -> ApiError:
    """The error for a strict schema that cannot be enforced."""
    message = f"The schema of {what} cannot be enforced: {error}. Change this part, or leave 'strict' out."
    return ApiError(400, message, param=param, code=INVALID_GRAMMAR)
