"""Messages to and from an engine, over an in-memory stream."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from api.engine.connection import INSPECT_LIMIT, Connection
from scheduler.messages import Cancel, Inspect, Message, Output, Report, Step, Stop, decode, encode


class Engine:
    """The engine's end of the stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = b""

    async def send(self, *messages: Message) -> None:
        await self._stream.send_all(b"".join(map(encode, messages)))

    async def send_raw(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive(self, number: int) -> list[Message]:
        """The next messages from the API."""
        while self._received.count(b"\n") < number:
            self._received += await self._stream.receive_some()
        *lines, self._received = self._received.split(b"\n", number)
        return [decode(line) for line in lines]

    async def close(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, Engine]]:
    ours, theirs = memory_stream_pair()
    async with Connection.over(ours) as connection:
        yield connection, Engine(theirs)


async def received(connection: Connection) -> list[Message]:
    """All messages until the connection ends."""
    return [message async for message in connection.messages()]


def report(number: int) -> Report:
    return Report({"running": number}, {})


async def test_posted_messages_arrive_in_order(autojump_clock: MockClock) -> None:
    async with connected() as (connection, engine):
        connection.post(Cancel(1))
        connection.post(Cancel(2))
        connection.post(Stop())
        assert await engine.receive(3) == [Cancel(1), Cancel(2), Stop()]


async def test_messages_may_arrive_in_pieces(autojump_clock: MockClock) -> None:
    step = Step([Output(1, [5])])
    line = encode(step)
    async with connected() as (connection, engine), trio.open_nursery() as nursery:

        async def send() -> None:
            for piece in (line[:7], line[7:] + line + line[:1], line[1:]):
                await engine.send_raw(piece)
                await wait_all_tasks_blocked()
            await engine.close()

        nursery.start_soon(send)
        assert await received(connection) == [step] * 3


async def test_the_connection_ends_after_garbage(autojump_clock: MockClock) -> None:
    async with connected() as (connection, engine):
        await engine.send(Step([]))
        await engine.send_raw(b"hello\n")
        await engine.send(Step([]))
        assert await received(connection) == [Step([])]


async def test_an_incomplete_message_at_the_end_of_the_stream_is_dropped(autojump_clock: MockClock) -> None:
    async with connected() as (connection, engine):
        await engine.send_raw(encode(Step([])) + encode(Step([]))[:-1])
        await engine.close()
        assert await received(connection) == [Step([])]


async def test_messages_to_a_dead_engine_are_dropped(autojump_clock: MockClock) -> None:
    async with connected() as (connection, engine):
        await engine.close()
        for _ in range(2):
            connection.post(Stop())
            await wait_all_tasks_blocked()
        assert await received(connection) == []
    connection.post(Stop())


async def test_reports_answer_inspections_and_are_not_yielded_as_messages(autojump_clock: MockClock) -> None:
    reports: list[Report | None] = []

    async def inspect() -> None:
        reports.append(await connection.inspect())

    async with connected() as (connection, engine), trio.open_nursery() as nursery:
        nursery.start_soon(received, connection)
        for number in (1, 2):
            nursery.start_soon(inspect)
            assert await engine.receive(1) == [Inspect()]
            await engine.send(report(number), Step([]))
        await wait_all_tasks_blocked()
        await engine.send(report(3))  # an unrequested report
        await engine.close()
    assert reports == [report(1), report(2)]


async def test_an_inspection_that_times_out_returns_the_last_report(autojump_clock: MockClock) -> None:
    async with connected() as (connection, engine), trio.open_nursery() as nursery:
        nursery.start_soon(received, connection)
        begun = trio.current_time()
        assert await connection.inspect() is None
        assert trio.current_time() - begun == pytest.approx(INSPECT_LIMIT)
        await engine.send(report(1))
        await wait_all_tasks_blocked()
        assert await connection.inspect() == report(1)
        await engine.close()


async def test_inspections_end_with_the_connection(autojump_clock: MockClock) -> None:
    async def inspect() -> None:
        assert await connection.inspect() is None
        assert trio.current_time() == begun

    async with trio.open_nursery() as nursery:
        begun = trio.current_time()
        async with connected() as (connection, _):
            nursery.start_soon(inspect)
            await wait_all_tasks_blocked()
