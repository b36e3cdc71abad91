"""The stream to an engine, over a pair of sockets."""

import socket

import pytest
import trio
from trio.testing import check_two_way_stream, wait_all_tasks_blocked

from api.engine.stream import EngineStream


async def _pair() -> tuple[EngineStream, EngineStream]:
    ours, theirs = socket.socketpair()
    return EngineStream(ours), EngineStream(theirs)


async def test_it_keeps_the_contract_of_a_stream() -> None:
    with trio.fail_after(60):
        await check_two_way_stream(_pair, None)


async def test_it_reads_what_is_there_and_then_the_end() -> None:
    ours, theirs = socket.socketpair()
    stream = EngineStream(ours)
    theirs.sendall(b"one\ntwo")
    assert await stream.receive_some() == b"one\ntwo"
    theirs.close()
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_it_waits_for_the_next_message() -> None:
    ours, theirs = socket.socketpair()
    stream = EngineStream(ours)
    received = []

    async def receive() -> None:
        received.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert not received
        theirs.sendall(b"later")
    assert received == [b"later"]
    theirs.close()
    await stream.aclose()


async def test_an_engine_that_died_with_messages_unread_breaks_the_stream() -> None:
    ours, theirs = socket.socketpair()
    stream = EngineStream(ours)
    await stream.send_all(b"a message that nobody reads")
    theirs.close()  # the kernel resets the connection
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
