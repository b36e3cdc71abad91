"""Bodies of uploads, which may be larger than the server's memory: the client sends no faster than they are read.

Quart keeps what has arrived in memory until somebody reads it, and refuses bodies beyond one limit for all operations.
So bodies of uploads do not pass through Quart.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Final, Self

import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)

from api.errors import ApiError
from api.http.body import Pace, too_slow

IsUpload = Callable[[str, str], bool]
"""Whether a method and a path are those of an upload."""


class UploadBody:
    """The body of one upload, read piece by piece.

    Reading raises ApiError 408 as `read_body`, and ApiError 400 if the body has no end.
    """

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        values = dict(headers)
        length = values.get(b"content-length", b"")
        self.content_type: Final = values.get(b"content-type", b"").decode("latin-1")
        self.length: Final = int(length) if length.isdigit() else None
        """What the client says; None if it does not say it."""
        self._sender, self._receiver = trio.open_memory_channel[bytes](0)
        self._is_complete = False
        self._pace: Pace | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        pace = self._pace = self._pace or Pace()
        with trio.move_on_at(pace.deadline):
            try:
                data = await self._receiver.receive()
            except trio.EndOfChannel:
                if not self._is_complete:
                    raise ApiError(400, "The request body has no end.", code="invalid_value") from None
                raise StopAsyncIteration from None
            pace.num_bytes += len(data)
            return data
        raise too_slow()

    async def take(self, event: ASGIReceiveEvent) -> None:
        """Pass on what has arrived. Waits until it is read, or not needed any more."""
        if event["type"] != "http.request":
            self._sender.close()
            return
        if event["body"]:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._sender.send(event["body"])
        if not event["more_body"]:
            self._is_complete = True
            self._sender.close()

    def discard(self) -> None:
        """Nobody reads what still arrives."""
        self._receiver.close()


CURRENT: ContextVar[UploadBody | None] = ContextVar("upload_body", default=None)
"""The body of the current request, if it is an upload."""


def paced(app: ASGIFramework, is_upload: IsUpload) -> ASGIFramework:
    """Bodies of uploads go to CURRENT, and not to the app."""

    async def framework(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http" or not is_upload(scope["method"], scope["path"]):
            await app(scope, receive, send)
            return
        body = UploadBody(scope["headers"])
        scope = scope | {"headers": [each for each in scope["headers"] if each[0] != b"content-length"]}

        async def receive_others() -> ASGIReceiveEvent:
            while True:
                event = await receive()
                await body.take(event)
                if event["type"] != "http.request":
                    return event

        async def send_answer(event: ASGISendEvent) -> None:
            body.discard()  # else Hypercorn would wait for ever with the rest of it
            await send(event)

        CURRENT.set(body)
        await app(scope, receive_others, send_answer)

    return framework
