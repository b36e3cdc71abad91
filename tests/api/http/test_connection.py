"""Connections whose client owes a request. The time is virtual, and the network is in memory."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from hypercorn.utils import wrap_app
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_pair, wait_all_tasks_blocked

from api.http.adapter import adapted
from api.http.connection import LINGER_SECONDS, Connection
from api.http.sockets import UNACKNOWLEDGED_LIMIT

KEEP_ALIVE = 75.0
HEAD = 10.0
ANSWER_SECONDS = 1000.0
HEADERS = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "server")]

End = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answers at once, or after ANSWER_SECONDS at `/late`, without reading the body."""
    assert scope["type"] == "http"
    if scope["path"] == "/late":
        with trio.move_on_after(ANSWER_SECONDS):
            while (await receive())["type"] != "http.disconnect":
                pass
            return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"fine", "more_body": False})


class Client:
    """The client's end of a served connection."""

    def __init__(self, stream: End) -> None:
        self.stream = stream
        self.opened = trio.current_time()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some(65536))

    async def seconds_until_closed(self) -> float:
        """Reads until the server closes the connection. Returns the time since it was opened."""
        while await self.receive():
            pass
        return trio.current_time() - self.opened


class _Socket:
    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    getsockname = getpeername


@asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    """A connection. At the end of the block the client closes it, and nothing of it may stay."""
    mine, served = memory_stream_pair()
    served.socket = _Socket()  # type: ignore[attr-defined]  # what Hypercorn reads of a real one
    config = Config()
    config.errorlog = None
    config.keep_alive_timeout = KEEP_ALIVE
    wrapped = wrap_app(adapted(app), 0, "asgi")
    connection = Connection(wrapped, config, WorkerContext(None), {}, cast(Any, served), head_seconds=HEAD)
    ended = trio.Event()

    async def serve() -> None:
        await connection.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield Client(mine)
        await mine.aclose()
        with trio.fail_after(0.1):
            await ended.wait()


def h2_client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    return client


def http2(fill: Callable[[h2.connection.H2Connection], None] = lambda _: None) -> bytes:
    client = h2_client()
    fill(client)
    return bytes(client.data_to_send())


HALF_HEAD = b"POST / HTTP/1.1\r\nHost: se"
WHOLE = b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_response_that_the_kernel_takes_in_parts_arrives_whole() -> None:
    """Over real sockets: what fits is written at once, the rest waits for the client."""
    chunks = [bytes([number]) * (1 << 18) for number in range(16)]

    async def stream(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    config = Config()
    config.errorlog = None
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    mine = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    served = await listener.accept()
    wrapped = wrap_app(adapted(stream), 0, "asgi")
    connection = Connection(wrapped, config, WorkerContext(None), {}, served, head_seconds=HEAD)
    received = b""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await mine.send_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
            await wait_all_tasks_blocked()  # the kernel's buffers are full
            while data := await mine.receive_some(65536):
                received += data
    await mine.aclose()
    await listener.aclose()
    _, _, body = received.partition(b"\r\n\r\n")
    assert body == b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HALF_HEAD, id="half a head"),
        pytest.param(http2(), id="http2 without a request"),
        pytest.param(http2(lambda c: c.send_headers(1, HEADERS))[:-5], id="http2 with half a head"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nS", id="half a preface"),
    ],
)
async def test_a_connection_without_a_request_is_closed_after_ten_seconds(
    sent: bytes, autojump_clock: MockClock
) -> None:
    async with connected() as client:
        if sent:
            await client.send(sent)
        assert await client.seconds_until_closed() == pytest.approx(HEAD)


async def test_a_head_that_trickles_is_closed_after_ten_seconds(autojump_clock: MockClock) -> None:
    async with connected() as client:
        for byte in HALF_HEAD[:9]:
            await client.send(bytes([byte]))
            await trio.sleep(1)
        assert await client.seconds_until_closed() == pytest.approx(HEAD)


async def test_each_head_has_its_own_ten_seconds(autojump_clock: MockClock) -> None:
    async with connected() as client:
        for _ in range(5):
            await client.send(WHOLE[:20])
            await trio.sleep(HEAD - 1)
            await client.send(WHOLE[20:])
            assert await client.receive()
            await trio.sleep(HEAD + 1)
        await client.send(HALF_HEAD)
        assert await client.seconds_until_closed() == pytest.approx(5 * 2 * HEAD + HEAD)


async def test_an_idle_connection_is_kept_for_its_time(autojump_clock: MockClock) -> None:
    async with connected() as client:
        await client.send(WHOLE)
        assert await client.seconds_until_closed() == pytest.approx(KEEP_ALIVE)


async def test_an_idle_http2_connection_is_kept_for_its_time(autojump_clock: MockClock) -> None:
    async with connected() as client:
        await client.send(http2(lambda c: c.send_headers(1, HEADERS, end_stream=True)))
        assert await client.seconds_until_closed() == pytest.approx(KEEP_ALIVE)


async def test_an_http2_connection_whose_requests_are_reset_is_idle(autojump_clock: MockClock) -> None:
    def fill(client: h2.connection.H2Connection) -> None:
        client.send_headers(1, [*HEADERS[:1], (":path", "/late"), *HEADERS[2:]], end_stream=True)
        client.reset_stream(1)

    async with connected() as client:
        await client.send(http2(fill))
        assert await client.seconds_until_closed() == pytest.approx(KEEP_ALIVE)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(WHOLE.replace(b"/ ", b"/late ", 1), id="http1"),
        pytest.param(
            http2(lambda c: c.send_headers(1, [*HEADERS[:1], (":path", "/late"), *HEADERS[2:]], end_stream=True)),
            id="http2",
        ),
    ],
)
async def test_a_late_answer_is_waited_for(sent: bytes, autojump_clock: MockClock) -> None:
    async with connected() as client:
        await client.send(sent)
        assert await client.seconds_until_closed() == pytest.approx(ANSWER_SECONDS + KEEP_ALIVE)


async def test_a_client_may_send_a_little_more_of_an_answered_body(autojump_clock: MockClock) -> None:
    """If the server closed at once, the kernel would reset the connection, and could drop the response."""
    async with connected() as client:
        await client.send(WHOLE[:-2])
        assert (await client.receive()).startswith(b"HTTP/1.1 200")
        assert await client.receive() == b"fine"
        assert await client.receive() == b""
        await trio.sleep(LINGER_SECONDS - 0.1)
        await client.send(b"h")
        await trio.sleep(0.2)
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"i")


async def test_a_refused_websocket_is_closed(autojump_clock: MockClock) -> None:
    async with connected() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert (await client.receive()).startswith(b"HTTP/1.1 400")
        assert await client.seconds_until_closed() == pytest.approx(HEAD)


async def test_late_data_of_an_answered_request_leaves_the_others(autojump_clock: MockClock) -> None:
    """Hypercorn alone raises KeyError for it."""
    own = h2_client()
    async with connected() as client:
        own.send_headers(1, HEADERS)
        await client.send(own.data_to_send())
        answered: list[int] = []
        while answered != [1]:
            answered += [
                e.stream_id for e in own.receive_data(await client.receive()) if isinstance(e, h2.events.StreamEnded)
            ]
        own.send_data(1, b"late", end_stream=True)
        own.send_headers(3, HEADERS, end_stream=True)
        await client.send(own.data_to_send())
        while answered != [1, 3]:
            answered += [
                e.stream_id for e in own.receive_data(await client.receive()) if isinstance(e, h2.events.StreamEnded)
            ]


async def test_a_client_that_leaves_without_room_for_its_answer_leaves_nothing(autojump_clock: MockClock) -> None:
    own = h2_client()
    own.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    own.send_headers(1, HEADERS, end_stream=True)
    async with connected() as client:
        await client.send(own.data_to_send())
        await trio.sleep(1)


async def test_a_client_that_takes_no_answer_is_closed(autojump_clock: MockClock) -> None:
    own = h2_client()
    own.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    own.send_headers(1, HEADERS, end_stream=True)
    async with connected() as client:
        await client.send(own.data_to_send())
        assert await client.seconds_until_closed() == pytest.approx(UNACKNOWLEDGED_LIMIT + KEEP_ALIVE)
