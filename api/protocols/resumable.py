"""Streams that outlive their connections: a client that comes back gets the events that it has not got.

A task of the server runs the generation and keeps its events. Connections only read them, each at its own position.
"""

import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context
from itertools import islice
from math import inf
from typing import Final

import trio
from trio.lowlevel import ParkingLot

from api.errors import ApiError
from api.serving.observer import CURRENT, RequestRecord

_log = logging.getLogger("cortex.api")

HOLD_SECONDS: Final = 10.0
"""How long a stream goes on, or is kept after its end, while nobody reads it. Clients come back within seconds, and an
answer that nobody wants must not compute for long."""
MAX_STREAMS: Final = 256
"""More than a server's users have running at once. With MAX_STREAM_BYTES, all take at most 256 MiB."""
MAX_STREAM_BYTES: Final = 1024 * 1024
"""Bytes that one stream keeps: about 3,000 events of a chat, or 10 seconds of an answer with 300 tokens a second."""
OVERHEAD: Final = 96
"""Approximate bytes that an event takes besides its text."""


class BrokenStreamError(Exception):
    """A stream cannot be read to its end. Ends the connection, so that the client does not take it for the end."""


class _Reader:
    """One connection that reads a stream."""

    def __init__(self, position: int) -> None:
        self.position = position
        """Of the next entry, counted from the stream's beginning."""


class ResumableStream:
    """The events of one answer, numbered from 1 on, and the connections that read them."""

    def __init__(self, *, max_bytes: int = MAX_STREAM_BYTES, on_read: Callable[[], object] = lambda: None) -> None:
        """`on_read` is called when a reader has got the last event."""
        self.id = f"stream_{secrets.token_hex(16)}"
        self.is_read = False
        """Whether a reader has got the last event."""
        self._max_bytes = max_bytes
        self._on_read = on_read
        self._entries: deque[tuple[int, bytes]] = deque()
        """Events and comments, each with the number of the last event up to it."""
        self._first = 0
        """The position of the first entry that is kept."""
        self._num_bytes = 0
        self._num_events = 0
        self._num_dropped = 0
        """The number of the last event that is not kept any more."""
        self._readers: set[_Reader] = set()
        self._has_ended = False
        self._is_whole = False
        self._news = ParkingLot()
        self._room = ParkingLot()
        self._scope = trio.CancelScope()
        self._hold()

    @property
    def has_expired(self) -> bool:
        """Whether nobody has read it for HOLD_SECONDS."""
        return self._scope.cancel_called

    async def run(self, events: AsyncGenerator[bytes], on_end: Callable[[], None]) -> None:
        """Keep the events of an answer until nobody has read them for HOLD_SECONDS. Closes `events`.

        `events` yields one or more whole server-sent events at a time. `on_end` is called when they have ended, or when
        nobody wants them any more.
        """
        with self._scope:
            try:
                async with aclosing(events):
                    async for data in events:
                        await self._add(data)
                self._is_whole = True
            except Exception:
                _log.exception("a stream failed")
            finally:
                self._has_ended = True
                self._news.unpark_all()
                on_end()
            await trio.sleep_forever()

    def read(self, after: int = 0) -> AsyncGenerator[bytes]:
        """The events after the one with this number, until the last one. The stream is held until they are read.

        Raises ApiError 400 if the stream has not had this event yet, 410 if the next one is not kept any more.
        """
        position = self._position(after)
        if not self._readers:
            self._hold()
        return self._read(_Reader(position))

    async def _read(self, reader: _Reader) -> AsyncGenerator[bytes]:
        self._readers.add(reader)
        self._scope.deadline = inf
        try:
            while reader.position < self._end or not self._has_ended:
                if reader.position < self._first:
                    raise BrokenStreamError("the client reads too slowly: the next events are not kept any more")
                if reader.position == self._end:
                    await self._news.park()
                    continue
                data = b"".join(entry for _, entry in islice(self._entries, reader.position - self._first, None))
                reader.position = self._end
                self._room.unpark_all()
                yield data
            if not self._is_whole:
                raise BrokenStreamError("the stream has ended before its last event")
            self.is_read = True
            self._on_read()
        finally:
            self._readers.discard(reader)
            self._room.unpark_all()
            if not self._readers:
                self._hold()

    @property
    def _end(self) -> int:
        return self._first + len(self._entries)

    def _hold(self) -> None:
        self._scope.deadline = trio.current_time() + HOLD_SECONDS

    def _position(self, after: int) -> int:
        """The position behind the event with this number and the comments that follow it."""
        if after > self._num_events:
            message = f"'after' is {after}, but the stream has had only {self._num_events} events until now."
            raise ApiError(400, message, param="after", code="invalid_value")
        if after < self._num_dropped:
            message = (
                f"The events after {after} are not kept any more. A stream keeps its last {self._max_bytes} bytes, "
                f"which begin after event {self._num_dropped}."
            )
            raise ApiError(410, message, param="after", code="events_dropped")
        position = self._end
        for number, _ in reversed(self._entries):
            if number <= after:
                break
            position -= 1
        return position

    async def _add(self, data: bytes) -> None:
        """Number the events, and drop the oldest ones beyond the bound.

        Waits for the foremost reader if there is one: as without resumption, a slow client gets everything, and the
        engine client ends a request that is not read for too long. Readers behind it lose their connections.
        """
        for event in data.split(b"\n\n")[:-1]:
            self._append(event + b"\n\n", is_event=not event.startswith(b":"))
        self._news.unpark_all()
        while self._num_bytes > self._max_bytes:
            if self._readers and max(reader.position for reader in self._readers) <= self._first:
                await self._room.park()
                continue
            self._num_dropped, dropped = self._entries.popleft()
            self._first += 1
            self._num_bytes -= len(dropped) + OVERHEAD

    def _append(self, entry: bytes, *, is_event: bool) -> None:
        if is_event:
            self._num_events += 1
            entry = b"id: %d\n%b" % (self._num_events, entry)
        self._entries.append((self._num_events, entry))
        self._num_bytes += len(entry) + OVERHEAD


class ResumableStreams:
    """The resumable streams of one server, by owner and id. One task must run `run`, in which their generations run."""

    def __init__(self, *, max_streams: int = MAX_STREAMS, max_stream_bytes: int = MAX_STREAM_BYTES) -> None:
        self._max_streams = max_streams
        self._max_stream_bytes = max_stream_bytes
        self._streams: dict[tuple[str, str], ResumableStream] = {}
        self._changes = ParkingLot()
        self._nursery: trio.Nursery | None = None

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Cancellation ends every stream."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def open(
        self, owner: str, events: AsyncGenerator[bytes], record: RequestRecord, on_end: Callable[[], None]
    ) -> ResumableStream | None:
        """Run an answer whose events are kept (see ResumableStream.run). None if there are too many streams."""
        assert self._nursery is not None, "streams run only while `run` runs"
        if len(self._streams) >= self._max_streams:
            return None
        stream = ResumableStream(max_bytes=self._max_stream_bytes, on_read=self._changes.unpark_all)
        self._streams[owner, stream.id] = stream
        context = Context()  # not the caller's, which holds the HTTP request with its body
        context.run(CURRENT.set, record)
        context.run(self._nursery.start_soon, self._run, owner, stream, events, on_end)
        return stream

    def find(self, owner: str, stream_id: str) -> ResumableStream | None:
        """The stream with this id, if it is the owner's and has not expired."""
        stream = self._streams.get((owner, stream_id))
        return None if stream is None or stream.has_expired else stream

    async def wait_read(self) -> None:
        """Wait until each stream has been read to its end, or has expired."""
        while not all(stream.is_read for stream in self._streams.values()):
            await self._changes.park()

    async def _run(
        self, owner: str, stream: ResumableStream, events: AsyncGenerator[bytes], on_end: Callable[[], None]
    ) -> None:
        try:
            await stream.run(events, on_end)
        finally:
            del self._streams[owner, stream.id]
            self._changes.unpark_all()
