"""Bodies that stall or trickle. The time is virtual."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
import trio
from quart_trio.testing.connections import TestHTTPConnection as Connection
from trio.testing import MockClock

from api.http.body import MAX_BODY_BYTES, MIN_BYTES_PER_SECOND, STALL_SECONDS
from api.text.tokenizer import Tokenizer
from tests.api.fakes import Server, chat


async def answer(connection: Connection) -> tuple[int | None, dict[str, Any]]:
    """The status and the object of a response."""
    data = b""
    with suppress(trio.EndOfChannel):
        while True:
            data += await connection.receive()
    return connection.status_code, orjson.loads(data)


async def test_a_body_that_stalls_is_refused(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    connection = Server(tokenizer).connect()
    began = trio.current_time()
    async with connection:
        await connection.send(orjson.dumps(chat())[:10])
        status, body = await answer(connection)
    assert trio.current_time() - began == pytest.approx(STALL_SECONDS)
    assert (status, body["error"]["code"]) == (408, "request_timeout")


async def test_a_body_that_trickles_is_refused(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    connection = Server(tokenizer).connect()
    began = trio.current_time()
    async with connection:

        async def trickle() -> None:
            for _ in range(10):
                await connection.send(b" ")
                await trio.sleep(STALL_SECONDS - 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert (await answer(connection))[0] == 408
            assert trio.current_time() - began == pytest.approx(STALL_SECONDS, rel=0.01)
            nursery.cancel_scope.cancel()


async def test_a_slow_upload_is_served(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    server.answers()
    connection = server.connect()
    began = trio.current_time()
    async with connection:
        for _ in range(20):
            await connection.send(b" " * MIN_BYTES_PER_SECOND * 20)
            await trio.sleep(20)
        await connection.send(orjson.dumps(chat()))
        await connection.send_complete()
        assert (await answer(connection))[0] == 200
    assert trio.current_time() - began == pytest.approx(400)


async def test_a_body_in_chunks_has_the_limit_of_others(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    connection = Server(tokenizer).connect()
    piece = b" " * (1 << 20)
    async with connection:
        for _ in range(MAX_BODY_BYTES // len(piece)):
            await connection.send(piece)
        await connection.send(b" ")
        assert (await answer(connection))[0] == 413
