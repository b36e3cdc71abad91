"""The messages to and from one engine, over any stream."""

import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import trio

from api.engine.ending import UNKNOWN
from scheduler.messages import Inspect, Message, Report, decode, encode

_log = logging.getLogger("cortex.api")

INSPECT_LIMIT: Final = 0.1
"""Seconds to wait for statistics. A step of a large model may take longer than load balancers wait for a response."""


class Connection:
    """The API's end of the stream to one engine.

    The connection ends when the engine closes the stream or sends invalid data. Then `messages` ends too. Messages that
    are posted later are dropped.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.ending = UNKNOWN
        """How the engine ended. Its launcher sets this before the `launch` block ends, as far as it knows."""
        self.is_garbled = False
        """Whether the engine has sent something that is not a message."""
        self._stream = stream
        self._outbox, self._posted = trio.open_memory_channel[Message](math.inf)
        self._inspections: deque[trio.Event] = deque()
        """One for each Inspect that has no Report yet. The engine answers in order."""
        self._last_report: Report | None = None
        self._reported_at = 0.0
        """When the last Report arrived, on trio's clock."""

    @classmethod
    @asynccontextmanager
    async def over(cls, stream: trio.abc.Stream) -> AsyncIterator[Self]:
        """A connection that sends messages while the block lasts. The end of the block closes the stream."""
        connection = cls(stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection._send)
                yield connection
                nursery.cancel_scope.cancel()
        finally:
            connection._close()
            await trio.aclose_forcefully(stream)

    def post(self, message: Message) -> None:
        """Queue a message. Never waits, even if the engine does not read: the queue is unbounded."""
        self._outbox.send_nowait(message)

    async def messages(self) -> AsyncIterator[Message]:
        """Yields the engine's messages until the connection ends, without Reports, which `inspect` returns."""
        pending = b""
        while True:
            try:
                data = await self._stream.receive_some(1 << 16)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                try:
                    message = decode(line)
                except ValueError:
                    _log.exception("a message from the engine cannot be decoded; its wire version may differ")
                    self.is_garbled = True
                    return
                if isinstance(message, Report):
                    self._receive_report(message)
                else:
                    yield message

    async def inspect(self) -> Report | None:
        """Returns statistics, which the engine sends between two steps.

        Returns the previous ones after INSPECT_LIMIT, or None if there are none.
        """
        answered = trio.Event()
        self._inspections.append(answered)
        self.post(Inspect())
        with trio.move_on_after(INSPECT_LIMIT):
            await answered.wait()
        return self._last_report

    @property
    def report_age(self) -> float:
        """Seconds since the last statistics arrived; 0 if there are none."""
        return trio.current_time() - self._reported_at if self._last_report is not None else 0.0

    def _receive_report(self, report: Report) -> None:
        self._last_report, self._reported_at = report, trio.current_time()
        if self._inspections:
            self._inspections.popleft().set()

    async def _send(self) -> None:
        async for message in self._posted:
            try:
                await self._stream.send_all(encode(message))
            except trio.BrokenResourceError:
                return  # `messages` ends for the same reason

    def _close(self) -> None:
        """Every pending `inspect` returns None: statistics of an engine that has ended are useless."""
        self._last_report = None
        for answered in self._inspections:
            answered.set()
