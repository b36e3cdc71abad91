"""Stalled connections, and many at once, against a server with small limits."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from bench.connections import STALLS, Chat, allow_files, crowd, stall
from bench.records import BenchError
from bench.servers import Server, Spec, Usage
from tests.api.servers import SECONDS


@asynccontextmanager
async def serving(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[Chat]:
    """A request to a server that answers each connection in this way, and closes it."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await answer(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        port = listener.socket.getsockname()[1]
        yield Chat.to(f"http://127.0.0.1:{port}/v1", "tiny", max_tokens=4, deadline=5)
        nursery.cancel_scope.cancel()


async def whole(stream: trio.SocketStream) -> bool:
    """Whether a whole request arrived before a moment without data."""
    received = b""
    with trio.move_on_after(0.2):
        while not received.endswith(b"}"):
            received += bytes(await stream.receive_some())
        return True
    return False


async def fine(stream: trio.SocketStream) -> None:
    if await whole(stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n{}")


async def test_stalled_connections_are_counted_when_the_server_closes_them() -> None:
    async with serving(fine) as chat:
        done = (await stall(chat, 10, patience=SECONDS)).measures()
    assert [done[f"closed_{kind}"] for kind in STALLS] == [5, 5]
    assert (done["still_open"], done["failed_probes"]) == (0, 0)
    assert done["probes"] > 0
    assert done["last_head_s"] >= 0.2


async def test_connections_that_stay_open_are_counted() -> None:
    async def keep(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with serving(keep) as chat:
        done = (await stall(chat, 4, patience=0.05)).measures()
    assert (done["still_open"], done["closed_head"], done["probes"]) == (4, 0, 0)


class Measured(Server):
    def usage(self) -> Usage:
        return Usage(0.0, 7)


async def test_a_crowd_counts_its_answers() -> None:
    num_asked = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal num_asked
        num_asked += 1
        number = num_asked
        assert await whole(stream)
        if number % 3:
            await stream.send_all(b"HTTP/1.1 %d Reason\r\n\r\n{}" % (200 if number % 3 == 1 else 429))

    async with serving(answer) as chat:
        server = Measured(Spec(name="fake", url="http://127.0.0.1:1/v1"), log=None)  # type: ignore[arg-type]
        done = await crowd(chat, 9, server, patience=SECONDS)
    assert done.statuses == {"200": 3, "429": 3, "none": 3}
    assert len(done.accepted) == 3
    assert (done.memory_before, done.memory_peak) == (7, 7)


def test_half_a_request_ends_in_its_head_or_its_body() -> None:
    chat = Chat.to("http://127.0.0.1:9/v1", "tiny", max_tokens=4, deadline=5)
    assert b"\r\n\r\n" not in chat.half("head")
    assert chat.half("body").startswith(chat.head)
    assert len(chat.half("body")) < len(chat.head) + len(chat.body)


def test_too_low_a_limit_for_open_files_is_an_error() -> None:
    with pytest.raises(BenchError, match="files may be open"):
        allow_files(1 << 40)
