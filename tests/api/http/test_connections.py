"""How many connections are served, and what happens to the others."""

import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
import orjson
import pytest
import trio
import trustme
from hypercorn.config import Config
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from api.http import connections
from api.http.connections import (
    FILES_RESERVE,
    MAX_REFUSALS,
    ConnectionLimits,
    Listener,
    Places,
    client_network,
    limits_of,
    serve_connections,
)
from tests.api.servers import SECONDS

WHOLE = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"fine", "more_body": False})


@asynccontextmanager
async def served(
    max_connections: int = 0,
    max_per_address: int = 0,
    head_seconds: float = SECONDS,
    max_refusals: int = MAX_REFUSALS,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A server's port. The server must end by itself after the block."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    limits = ConnectionLimits(
        max_connections=max_connections,
        max_per_address=max_per_address,
        head_seconds=head_seconds,
        max_refusals=max_refusals,
    )
    config = Config()
    config.errorlog = None
    config.graceful_timeout = SECONDS
    ending = trio.Event()
    taken: list[Listener] = (
        [*listeners] if tls is None else [trio.SSLListener(each, tls, https_compatible=True) for each in listeners]
    )
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_connections(app, config, taken, limits, shutdown=ending.wait))
            yield listeners[0].socket.getsockname()[1]
            ending.set()


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def ask(stream: trio.SocketStream) -> bytes:
    """The whole answer to a request."""
    await stream.send_all(WHOLE)
    received = b""
    while not received.endswith((b"fine", b"}")):
        more = await stream.receive_some()
        if not more:
            break
        received += bytes(more)
    return received


@pytest.mark.parametrize(("in_all", "per_address"), [(2, 0), (0, 2)])
async def test_a_connection_over_a_limit_gets_a_429(in_all: int, per_address: int) -> None:
    async with served(in_all, per_address) as port, await connect(port) as first, await connect(port) as second:
        for stream in (first, second):
            assert (await ask(stream)).startswith(b"HTTP/1.1 200")
        async with await connect(port) as third:
            head, _, body = (await ask(third)).partition(b"\r\n\r\n")
            assert await third.receive_some() == b""
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
        assert orjson.loads(body)["error"]["code"] == "too_many_connections"
        await first.aclose()
        while True:  # the server sees it a moment later
            async with await connect(port) as again:
                if (await ask(again)).startswith(b"HTTP/1.1 200"):
                    break


async def test_more_refusals_than_wait_at_once_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REFUSAL_SECONDS", SECONDS)
    async with served(max_connections=1, max_refusals=1) as port, await connect(port) as first:
        assert (await ask(first)).startswith(b"HTTP/1.1 200")
        async with await connect(port), await connect(port) as third:
            assert await third.receive_some() == b""


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_client_that_does_not_take_its_refusal_is_closed(
    monkeypatch: pytest.MonkeyPatch, *, is_empty: bool
) -> None:
    monkeypatch.setattr(connections, "REFUSAL_SECONDS", 0.05)
    async with served(max_connections=1) as port, await connect(port) as first:
        assert (await ask(first)).startswith(b"HTTP/1.1 200")
        async with await connect(port) as second:
            if not is_empty:
                assert (await ask(second)).startswith(b"HTTP/1.1 429")
            assert await second.receive_some() == b""


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    trustme.CA().issue_cert("server").configure_cert(context)
    return context


async def test_http2_over_tls_is_answered(tls: ssl.SSLContext) -> None:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    trusting.set_alpn_protocols(["h2"])
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(
        1, [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "server")], end_stream=True
    )
    async with served(tls=tls) as port, await connect(port) as plain:
        stream = trio.SSLStream(plain, trusting, https_compatible=True)
        await stream.send_all(client.data_to_send())
        events: list[h2.events.Event] = []
        while not any(isinstance(event, h2.events.StreamEnded) for event in events):
            events += client.receive_data(bytes(await stream.receive_some()))
    assert b"".join(event.data or b"" for event in events if isinstance(event, h2.events.DataReceived)) == b"fine"


def half_a_hello() -> bytes:
    """The first half of a TLS handshake's first message."""
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="server")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = sent.read()
    return hello[: len(hello) // 2]


@pytest.mark.parametrize("sent", [b"", half_a_hello(), b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_does_not_end_is_given_up(tls: ssl.SSLContext, sent: bytes) -> None:
    async with served(head_seconds=0.1, tls=tls) as port, await connect(port) as stream:
        if sent:
            await stream.send_all(sent)
        with suppress(trio.BrokenResourceError):  # the kernel resets a connection with unread data
            while await stream.receive_some():
                pass


async def test_stalled_connections_are_closed_while_others_are_served() -> None:
    async with served(head_seconds=0.3) as port, AsyncExitStack() as opened:
        stalled = [await opened.enter_async_context(await connect(port)) for _ in range(50)]
        for number, stream in enumerate(stalled):
            if number % 2:
                await stream.send_all(WHOLE[:20])
        async with await connect(port) as other:
            assert (await ask(other)).startswith(b"HTTP/1.1 200")
        for stream in stalled:
            assert await stream.receive_some() == b""


def h2_connect() -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
    client.initiate_connection()
    client.send_headers(1, [(":method", "CONNECT"), (":authority", "server")])
    return bytes(client.data_to_send())


async def test_an_error_in_one_connection_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Hypercorn raises UnboundLocalError for an HTTP/2 CONNECT without a path."""
    async with served() as port, await connect(port) as bad, await connect(port) as good:
        assert (await ask(good)).startswith(b"HTTP/1.1 200")
        await bad.send_all(h2_connect())
        while await bad.receive_some():
            pass
        assert (await ask(good)).startswith(b"HTTP/1.1 200")
    assert [record.getMessage()[:45] for record in caplog.records] == ["closed a connection after an error in its pro"]


async def test_idle_connections_end_with_the_server() -> None:
    async with AsyncExitStack() as streams:
        async with served() as port:
            idle = await streams.enter_async_context(await connect(port))
            silent = await streams.enter_async_context(await connect(port))
            assert (await ask(idle)).startswith(b"HTTP/1.1 200")
        assert await idle.receive_some() == b""
        assert await silent.receive_some() == b""


def test_places_are_counted_for_each_address() -> None:
    places = Places(ConnectionLimits(max_connections=5, max_per_address=2))
    with ExitStack() as held:
        taken = [held.enter_context(places.take(address)) for address in ("a", "a", "a", "b", None, None, None)]
        assert taken == [True, True, False, True, True, True, False]
    with places.take("a") as is_free:
        assert is_free


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_client_counts_by_its_network(host: str, network: str) -> None:
    assert client_network(host) == network


@pytest.mark.parametrize(
    ("wanted", "soft", "hard", "raised", "allowed"),
    [
        (100, 10_000, 20_000, None, (100, MAX_REFUSALS)),
        (4096, 1024, 20_000, 4096 + MAX_REFUSALS + FILES_RESERVE, (4096, MAX_REFUSALS)),
        (4096, 1024, resource.RLIM_INFINITY, 4096 + MAX_REFUSALS + FILES_RESERVE, (4096, MAX_REFUSALS)),
        (4096, 1024, FILES_RESERVE + 900, FILES_RESERVE + 900, (600, 300)),
        (500, 1024, FILES_RESERVE + 900, FILES_RESERVE + 900, (500, 300)),
        (0, 1024, FILES_RESERVE + 900, FILES_RESERVE + 900, (600, 300)),
        (0, resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, (0, MAX_REFUSALS)),
        (10, 100, 100, 100, (2, 0)),
    ],
)
def test_connections_stay_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, wanted: int, soft: int, hard: int, raised: int | None, allowed: tuple[int, int]
) -> None:
    new: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: new.append(limits))
    limits = limits_of(wanted, 7)
    assert (limits.max_connections, limits.max_refusals, limits.max_per_address) == (*allowed, 7)
    assert new == ([] if raised is None else [(raised, hard)])
