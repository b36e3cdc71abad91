"""Accepts connections, and limits how many there are, in all and from one address.

Hypercorn's own accept loop has no place for these limits, and an exception in one connection would end it: an HTTP/2
client can cause several. So `serve_connections` replaces the loop. Hypercorn still serves each connection.
"""

import logging
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

import orjson
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, LifespanState
from hypercorn.utils import wrap_app

from api.errors import ApiError, leaves
from api.http.connection import Connection, Stream

_log = logging.getLogger("cortex.api")

HEAD_SECONDS: Final = 10.0
"""How long a client may take for the head of a request, and for the TLS handshake."""
REFUSAL_SECONDS: Final = 1.0
"""How long a client that is over a limit may take to send its request and to read the refusal."""
MAX_REFUSALS: Final = 2048
FILES_RESERVE: Final = 256
"""Open files that are no connections: of engines, logs and listening sockets."""
UNLIMITED_FILES: Final = 1 << 20
"""Open files that count as enough for any number of connections."""

Listener = trio.SocketListener | trio.SSLListener[trio.SocketStream]


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What connections may take. For the numbers, 0 is no limit."""

    max_connections: int
    max_per_address: int
    head_seconds: float = HEAD_SECONDS
    max_refusals: int = MAX_REFUSALS
    """How many clients may read a refusal at once. Further connections are closed without one."""


def limits_of(max_connections: int, max_per_address: int) -> ConnectionLimits:
    """Limits for which this process may open files. Raises the process's own limit for open files if it can.

    If that stays too low, fewer connections than `max_connections` are allowed, and the log says so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + MAX_REFUSALS + FILES_RESERVE if max_connections else UNLIMITED_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return ConnectionLimits(max_connections=max_connections, max_per_address=max_per_address)
    room = max(2, soft - FILES_RESERVE)
    refusals = min(MAX_REFUSALS, room // 3)
    allowed = room - refusals
    if max_connections <= allowed and max_connections:
        allowed = max_connections
    elif max_connections:
        _log.warning("at most %d connections instead of %d: only %d files may be open", allowed, max_connections, soft)
    return ConnectionLimits(max_connections=allowed, max_per_address=max_per_address, max_refusals=refusals)


class Places:
    """Counts connections, up to a limit in all and for each address."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._num_held = 0
        self._by_address: Counter[str] = Counter()

    @contextmanager
    def take(self, address: str | None) -> Iterator[bool]:
        """Yields whether there is a place. It is held until the block ends. None is no address, and has no limit."""
        limits = self._limits
        is_full = 0 < limits.max_connections <= self._num_held
        is_greedy = address is not None and 0 < limits.max_per_address <= self._by_address[address]
        if is_full or is_greedy:
            yield False
            return
        self._num_held += 1
        if address is not None:
            self._by_address[address] += 1
        try:
            yield True
        finally:
            self._num_held -= 1
            if address is not None:
                self._by_address[address] -= 1
                if not self._by_address[address]:
                    del self._by_address[address]


async def serve_connections(
    app: ASGIFramework,
    config: Config,
    listeners: list[Listener],
    limits: ConnectionLimits,
    *,
    shutdown: Callable[[], Awaitable[None]],
) -> None:
    """Serve until `shutdown` returns. Then connections get `config.graceful_timeout` seconds to end.

    Does what hypercorn.trio.serve does, with the same graceful end.
    """
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    config.ssl_handshake_timeout = limits.head_seconds
    context = WorkerContext(None)
    state: LifespanState = {}
    lifespan = Lifespan(wrapped, config, state)
    places = Places(limits)
    refusals = trio.CapacityLimiter(limits.max_refusals)

    async def handle(stream: Stream) -> None:
        with places.take(_address(stream)) as is_free:
            if is_free:
                connection = Connection(wrapped, config, context, state, stream, head_seconds=limits.head_seconds)
                await _run(connection)
                return
        await _refuse(stream, refusals)

    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(partial(trio.serve_listeners, handle, [listener], handler_nursery=connections))
                await shutdown()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


async def _run(connection: Connection) -> None:
    try:
        await connection.run()
    except* Exception as errors:  # a client must not end the server by an error in the protocol
        _log.warning("closed a connection after an error in its protocol: %r", next(leaves(errors)))
        _log.debug("the whole error", exc_info=errors)


def _address(stream: Stream) -> str | None:
    """The client's address: of IPv6 its network, because a client has a whole one. None for a Unix socket."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if transport.socket.family == socket.AF_UNIX:
        return None
    try:
        host: str = transport.socket.getpeername()[0]
    except OSError:  # it is gone
        return ""
    return client_network(host)


def client_network(host: str) -> str:
    """The address that counts for a client: of IPv6 its /64, of IPv4 the address itself."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


_REFUSAL_BODY: Final = orjson.dumps(
    ApiError(
        429, "Too many connections. Please try again shortly.", kind="rate_limit_error", code="too_many_connections"
    ).body()
)
_REFUSAL: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%b" % (len(_REFUSAL_BODY), _REFUSAL_BODY)
)


async def _refuse(stream: Stream, refusals: trio.CapacityLimiter) -> None:
    """Answer 429 to a client that speaks plain HTTP/1.1. Others, and those over the limit of refusals, are closed."""
    if isinstance(stream, trio.SSLStream) or not refusals.available_tokens:
        return  # trio closes the stream
    async with refusals:
        with trio.move_on_after(REFUSAL_SECONDS), suppress(trio.BrokenResourceError, OSError):
            await stream.receive_some(65536)  # if the request stayed unread, the kernel would reset the connection
            await stream.send_all(_REFUSAL)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
