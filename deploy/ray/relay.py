"""Asks nodes until one answers, and passes its answer on as it comes. It needs no Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final, Protocol

from deploy.ray.errors import GONE, NO_NODE, error_body, error_event
from deploy.ray.headers import first
from deploy.ray.node import Call, Head, NodeGoneError, Piece

ATTEMPTS: Final = 5
PAUSE_SECONDS: Final = 0.2
"""Before the second attempt, and longer before each further one: Serve notices the end of a node meanwhile."""
ACCEPT_SECONDS: Final = 60.0
"""How long a request may wait for a node that takes it. A node that replaces another one starts within seconds."""
RETRY_AFTER: Final = b"5"


class Pieces(Protocol):
    """What a node sends for a call."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    async def __anext__(self) -> Piece: ...

    def cancel(self) -> None: ...


class Relay:
    def __init__(self, ask: Callable[[Call], Pieces], gone: tuple[type[Exception], ...] = ()) -> None:
        """`gone` are the errors, besides NodeGoneError, that say that a node has ended."""
        self._ask = ask
        self._gone: tuple[type[Exception], ...] = (*gone, NodeGoneError)

    async def open(self, call: Call) -> tuple[Head, AsyncIterator[bytes]]:
        """The answer of a node. If a node ends before its answer begins, another one is asked."""
        for attempt in range(1, ATTEMPTS + 1):
            pieces = self._ask(call)
            try:
                await asyncio.wait_for(anext(pieces), ACCEPT_SECONDS)
                head = await anext(pieces)
            except self._gone:
                await asyncio.sleep(PAUSE_SECONDS * attempt)
                continue
            except TimeoutError:
                pieces.cancel()
                break
            except BaseException:
                pieces.cancel()
                raise
            assert isinstance(head, Head)
            return head, self._body(call, head, pieces)
        return refusal(call.target, HTTPStatus.SERVICE_UNAVAILABLE, NO_NODE)

    async def _body(self, call: Call, head: Head, pieces: Pieces) -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                assert isinstance(piece, bytes)
                yield piece
        except self._gone:
            # Of another body the client sees that it is not complete, because the connection breaks.
            if not (first(head.headers, b"content-type") or b"").startswith(b"text/event-stream"):
                raise
            yield error_event(call.target, GONE)
        finally:
            pieces.cancel()  # does nothing if the answer is complete


def refusal(target: str, status: HTTPStatus, message: str) -> tuple[Head, AsyncIterator[bytes]]:
    """An answer of our own."""
    body = error_body(target, status, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", RETRY_AFTER))
    return Head(status, tuple(headers)), _only(body)


async def _only(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
