"""One connection: Hypercorn's, with limits for clients that send no request.

Hypercorn's `read_timeout` would also close a stream that waits for its next token. So `Connection` has its own reading
loop, which looks at what the client owes the server.
"""

import os
from contextlib import suppress
from math import inf
from typing import Final

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, LifespanState

LINGER_SECONDS: Final = 2.0
"""How long a client may go on sending a body after its answer."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Connection(TCPServer):
    """Serves one connection until it ends. Closes it if the client does not send the head of a request in time."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        stream: Stream,
        *,
        head_seconds: float,
    ) -> None:
        """`head_seconds`: from the connection, or else from a request's first byte, to the end of its head."""
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]  # it serves both kinds
        self._plain_socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        """None with TLS."""
        self._head_seconds = head_seconds
        self._waiting_since: float | None = None
        """Since when the client owes the head of a request; None if it owes nothing."""
        self._num_requests = 0
        self._reading = trio.CancelScope()
        self._discards_until: float | None = None
        """Set when the server has answered and closed, but the client may still be sending."""
        self._has_ended = False

    async def _read_data(self) -> None:
        while True:
            deadline = self._deadline() if self._discards_until is None else self._discards_until
            with trio.move_on_at(deadline) as self._reading:
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            if self._reading.cancelled_caught:
                break
            if self._discards_until is None:
                await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
        await self._end()

    async def protocol_send(self, event: Event) -> None:
        """Sends. Closes too, but not at once while a body arrives: the kernel would reset the connection, and the
        client could lose the response that says why its request was refused.
        """
        if isinstance(event, Closed) and self._owes_body():
            self._discards_until = self._reading.deadline = trio.current_time() + LINGER_SECONDS
            send_eof = getattr(self.stream, "send_eof", None)  # TLS has no half-closed connections
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                if send_eof is not None:
                    await send_eof()
            return
        if isinstance(event, RawData):
            sent = self._send_now(event.data)
            if sent == len(event.data):
                return
            event = RawData(event.data[sent:])
        await super().protocol_send(event)

    def _send_now(self, data: bytes) -> int:
        """Sends what the kernel takes at once, and returns how many bytes. Usually it takes all.

        A send through trio lets all other tasks run twice, which takes longer than the send. Errors are left to it.
        """
        if self._plain_socket is None or self.send_lock.locked():
            return 0
        try:
            return os.write(self._plain_socket.fileno(), data)
        except OSError:
            return 0

    def _owes_body(self) -> bool:
        connection = getattr(self.protocol.protocol, "connection", None)
        return isinstance(connection, h11.Connection) and connection.their_state is h11.SEND_BODY

    def _deadline(self) -> float:
        """The time until which the client must send something."""
        protocol = self.protocol.protocol
        if protocol.keep_alive_requests != self._num_requests:
            self._num_requests = protocol.keep_alive_requests
            self._waiting_since = None
        limit = self._head_seconds
        if isinstance(protocol, H2Protocol):
            _forgive_late_data(protocol)
            waits = protocol.idle
            if self._num_requests:  # frames such as pings are no beginning of a request
                limit = self.config.keep_alive_timeout
        elif isinstance(protocol.connection, h11.Connection):
            # Between two requests, Hypercorn's own timer for idle connections runs.
            is_reading_head = protocol.connection.their_state is h11.IDLE
            waits = is_reading_head and (not self._num_requests or bool(protocol.connection.trailing_data[0]))
        else:
            waits = True  # Hypercorn has refused a websocket, and leaves the connection open
        if not waits:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = trio.current_time()
        return inf if self._waiting_since is None else self._waiting_since + limit

    async def _end(self) -> None:
        """End what still runs for the connection."""
        self._has_ended = True
        await self.protocol.handle(Closed())
        if isinstance(self.protocol.protocol, H2Protocol):
            for buffer in list(self.protocol.protocol.stream_buffers.values()):
                await buffer.close()  # a response that waits for room there would wait for ever
        await self.idle_task.stop()  # it would keep the closed connection for the rest of its time

    async def _idle_timeout(self) -> None:
        if not self._has_ended:
            await super()._idle_timeout()


class _EndedStream:
    """Takes what a client still sends for a request that has its response already."""

    idle = True

    async def handle(self, event: StreamEvent) -> None:
        pass


class _Streams(dict[int, HTTPStream | WSStream]):
    def __missing__(self, stream_id: int) -> _EndedStream:
        return _EndedStream()


def _forgive_late_data(protocol: H2Protocol) -> None:
    """Let clients send the rest of a body that the server answered without reading it.

    Hypercorn raises KeyError for such data, which would close the connection under all its other requests.
    """
    if not isinstance(protocol.streams, _Streams):
        protocol.streams = _Streams(protocol.streams)
