"""The events of resumable streams and their readers, in virtual time."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from api.errors import ApiError
from api.protocols.resumable import HOLD_SECONDS, BrokenStreamError, ResumableStream, ResumableStreams
from api.serving.observer import CURRENT, RequestRecord

Events = AsyncGenerator[bytes]


class Source:
    """The events of an answer, sent by a test."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](1000)
        self.is_closed = False
        self.num_ends = 0
        self.num_taken = 0

    async def events(self) -> Events:
        try:
            async for data in self._receive:
                self.num_taken += 1
                yield data
        finally:
            self.is_closed = True

    async def send(self, *texts: str) -> None:
        """Sends an event for each text in one write, or a comment if it begins with a colon."""
        self._send.send_nowait(b"".join(_entry(text) for text in texts))
        await wait_all_tasks_blocked()

    async def end(self) -> None:
        self._send.close()
        await wait_all_tasks_blocked()

    def on_end(self) -> None:
        self.num_ends += 1


def _entry(text: str) -> bytes:
    return f"{text if text.startswith(':') else f'data: {text}'}\n\n".encode()


class Reader:
    """A client that reads a stream until it leaves."""

    def __init__(self, events: Events, nursery: trio.Nursery, *, reads: bool = True) -> None:
        self.data = b""
        self.has_ended = False
        self.error: Exception | None = None
        self._events = events
        self._scope = trio.CancelScope()
        self._reads = reads
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self._scope:
            async with aclosing(self._events):
                try:
                    async for data in self._events:
                        self.data += data
                        if not self._reads:
                            await trio.sleep_forever()
                    self.has_ended = True
                except BrokenStreamError as error:
                    self.error = error

    async def leave(self) -> None:
        self._scope.cancel()
        await wait_all_tasks_blocked()

    @property
    def received(self) -> list[tuple[int, str]]:
        """The numbers and texts of the events."""
        found = []
        for event in self.data.decode().split("\n\n")[:-1]:
            if not event.startswith(":"):
                number, data = event.removeprefix("id: ").split("\ndata: ")
                found.append((int(number), data))
        return found


def numbered(*texts: str, first: int = 1) -> list[tuple[int, str]]:
    return list(enumerate(texts, first))


class Opened:
    """A stream, its source, and the nursery of its readers."""

    def __init__(self, nursery: trio.Nursery, streams: ResumableStreams, owner: str = "ann") -> None:
        self.nursery = nursery
        self.streams = streams
        self.source = Source()
        stream = streams.open(owner, self.source.events(), RequestRecord(), self.source.on_end)
        assert stream is not None
        self.stream: ResumableStream = stream

    async def reader(self, after: int = 0, *, reads: bool = True) -> Reader:
        reader = Reader(self.stream.read(after), self.nursery, reads=reads)
        await wait_all_tasks_blocked()
        return reader


@asynccontextmanager
async def running(streams: ResumableStreams | None = None) -> AsyncIterator[tuple[trio.Nursery, ResumableStreams]]:
    streams = streams or ResumableStreams()
    async with trio.open_nursery() as nursery:
        await nursery.start(streams.run)
        yield nursery, streams
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(*, max_bytes: int = 1 << 20) -> AsyncIterator[Opened]:
    async with running(ResumableStreams(max_stream_bytes=max_bytes)) as (nursery, streams):
        yield Opened(nursery, streams)


async def test_events_get_numbers_and_comments_none(autojump_clock: MockClock) -> None:
    async with opened() as it:
        reader = await it.reader()
        await it.source.send(": queued 2")
        await it.source.send("a", "b")
        await it.source.send(": ping", "c")
        await it.source.end()
        assert reader.data == b": queued 2\n\nid: 1\ndata: a\n\nid: 2\ndata: b\n\n: ping\n\nid: 3\ndata: c\n\n"
        assert reader.has_ended


async def test_named_events_keep_their_names(autojump_clock: MockClock) -> None:
    async with opened() as it:
        reader = await it.reader()
        it.source._send.send_nowait(b"event: ping\ndata: {}\n\n")
        await wait_all_tasks_blocked()
        assert reader.data == b"id: 1\nevent: ping\ndata: {}\n\n"


async def test_the_rest_follows_the_last_event_and_skips_old_comments(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await it.source.send(": queued 1", "a", ": ping")
        await it.source.send("b", ": ping", "c", ": ping")
        assert (await it.reader(0)).received == numbered("a", "b", "c")
        assert (await it.reader(1)).data == b"id: 2\ndata: b\n\n: ping\n\nid: 3\ndata: c\n\n: ping\n\n"
        last = await it.reader(3)
        assert last.data == b""
        await it.source.send("d")
        assert last.received == numbered("d", first=4)


async def test_an_event_that_does_not_exist_yet_is_refused(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await it.source.send("a")
        with pytest.raises(ApiError) as refused:
            it.stream.read(2)
        assert (refused.value.status, refused.value.param) == (400, "after")


async def test_it_goes_on_for_a_while_without_a_reader(autojump_clock: MockClock) -> None:
    async with opened() as it:
        reader = await it.reader()
        await it.source.send("a")
        await reader.leave()
        await trio.sleep(HOLD_SECONDS - 1)
        await it.source.send("b")
        again = await it.reader(1)
        await trio.sleep(3 * HOLD_SECONDS)  # somebody reads
        await it.source.send("c")
        await again.leave()
        await trio.sleep(HOLD_SECONDS - 1)  # the second disconnect gives as much time as the first
        last = await it.reader(2)
        await it.source.end()
        assert again.received == numbered("b", "c", first=2)
        assert last.received == numbered("c", first=3)
        assert last.has_ended
        assert it.source.num_ends == 1


@pytest.mark.parametrize("was_read", [False, True])
async def test_a_stream_that_nobody_reads_is_cancelled(autojump_clock: MockClock, was_read: bool) -> None:
    async with opened() as it:
        await it.source.send("a")
        if was_read:
            reader = await it.reader()
            await trio.sleep(5 * HOLD_SECONDS)
            await reader.leave()
        await trio.sleep(HOLD_SECONDS - 0.01)
        assert it.streams.find("ann", it.stream.id) is it.stream
        assert not it.source.is_closed
        await trio.sleep(0.02)
        assert it.streams.find("ann", it.stream.id) is None
        assert (it.source.is_closed, it.source.num_ends, it.streams.num_streams) == (True, 1, 0)


async def test_one_reader_is_enough(autojump_clock: MockClock) -> None:
    async with opened() as it:
        one, two = await it.reader(), await it.reader()
        await one.leave()
        await trio.sleep(2 * HOLD_SECONDS)
        await it.source.send("a")
        assert two.received == numbered("a")


async def test_the_end_can_be_read_again(autojump_clock: MockClock) -> None:
    async with opened() as it:
        reader = await it.reader()
        await it.source.send("a", "b")
        await it.source.end()
        assert reader.has_ended
        assert (it.source.is_closed, it.source.num_ends) == (True, 1)
        await trio.sleep(HOLD_SECONDS - 1)
        late = await it.reader(1)
        assert late.received == numbered("b", first=2)
        assert late.has_ended
        assert (await it.reader(2)).has_ended, "nothing is left"
        await trio.sleep(HOLD_SECONDS + 1)
        assert it.streams.find("ann", it.stream.id) is None
        assert it.streams.num_streams == 0


async def test_others_do_not_find_it(autojump_clock: MockClock) -> None:
    async with opened() as it:
        assert it.streams.find("ann", it.stream.id) is it.stream
        assert it.streams.find("bob", it.stream.id) is None
        assert it.streams.find("ann", "stream_0") is None


async def test_the_oldest_events_go_while_nobody_reads(autojump_clock: MockClock) -> None:
    async with opened(max_bytes=1000) as it:
        for number in range(20):
            await it.source.send(f"{number:0100}")
        with pytest.raises(ApiError) as gone:
            it.stream.read(0)
        assert (gone.value.status, gone.value.code) == (410, "events_dropped")
        dropped = int(gone.value.message.split("after event ")[1].rstrip("."))
        with pytest.raises(ApiError):
            it.stream.read(dropped - 1)
        reader = await it.reader(dropped)
        assert [number for number, _ in reader.received] == list(range(dropped + 1, 21))
        assert 3 <= len(reader.received) <= 9
        await it.source.end()
        assert reader.has_ended


async def test_an_event_larger_than_the_bound_reaches_readers_only(autojump_clock: MockClock) -> None:
    async with opened(max_bytes=1000) as it:
        reader = await it.reader()
        await it.source.send("x" * 2000)
        await it.source.end()
        assert reader.received == numbered("x" * 2000)
        with pytest.raises(ApiError) as gone:
            it.stream.read(0)
        assert gone.value.status == 410
        assert (await it.reader(1)).has_ended


async def test_the_generation_waits_for_its_only_reader(autojump_clock: MockClock) -> None:
    """Without resumption it would wait too. When the reader has left, it does not wait any more."""
    async with opened(max_bytes=1000) as it:
        slow = await it.reader(reads=False)
        for number in range(20):
            await it.source.send(f"{number:0100}")
        assert it.source.num_taken < 10
        await slow.leave()
        assert it.source.num_taken == 20


async def test_a_slow_reader_does_not_hold_a_faster_one(autojump_clock: MockClock) -> None:
    """Its connection may be dead already. It is closed instead of skipping events."""
    async with opened(max_bytes=1000) as it:
        events = it.stream.read()
        slow = Reader(events, it.nursery, reads=False)
        fast = await it.reader()
        texts = [f"{number:0100}" for number in range(20)]
        for text in texts:
            await it.source.send(text)
        assert fast.received == numbered(*texts)
        assert slow.received == numbered(texts[0])
        await slow.leave()


async def test_a_reader_that_lost_events_is_closed(autojump_clock: MockClock) -> None:
    async with opened(max_bytes=1000) as it:
        behind = it.stream.read()
        fast = await it.reader()
        await it.source.send("a")
        assert await anext(behind) == b"id: 1\ndata: a\n\n"
        for number in range(20):
            await it.source.send(f"{number:0100}")
        with pytest.raises(BrokenStreamError):
            await anext(behind)
        assert len(fast.received) == 21


async def test_a_failure_closes_connections(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> Events:
        yield b"data: a\n\n"
        raise ValueError("broken")

    async with running() as (nursery, streams):
        ends: list[bool] = []
        stream = streams.open("ann", failing(), RequestRecord(), lambda: ends.append(True))
        assert stream is not None
        reader = Reader(stream.read(), nursery)
        await wait_all_tasks_blocked()
        assert reader.received == numbered("a")
        assert reader.error is not None
        assert not reader.has_ended
        assert ends == [True]
        assert "broken" in caplog.text
        await trio.sleep(HOLD_SECONDS + 1)
        assert streams.num_streams == 0


async def test_the_number_of_streams_is_bounded(autojump_clock: MockClock) -> None:
    async with running(ResumableStreams(max_streams=2)) as (nursery, streams):
        first, second = Opened(nursery, streams), Opened(nursery, streams)
        unused = Source()
        assert streams.open("bob", unused.events(), RequestRecord(), unused.on_end) is None
        await second.source.end()
        await trio.sleep(HOLD_SECONDS + 1)
        assert Opened(nursery, streams).stream.id not in (first.stream.id, second.stream.id)


async def test_the_generation_has_the_record_but_nothing_else_of_the_request(autojump_clock: MockClock) -> None:
    """The HTTP request with its body is in other context variables."""
    from contextvars import ContextVar

    request: ContextVar[str] = ContextVar("request")
    request.set("a body")
    seen: list[object] = []

    async def events() -> Events:
        seen.extend([CURRENT.get(), request.get("nothing")])
        yield b"data: a\n\n"

    async with running() as (_, streams):
        record = RequestRecord()
        streams.open("ann", events(), record, lambda: None)
        await wait_all_tasks_blocked()
        assert seen == [record, "nothing"]


async def test_a_server_waits_until_streams_are_read_or_expire(autojump_clock: MockClock) -> None:
    async with running() as (nursery, streams):
        await streams.wait_read()
        read, left = Opened(nursery, streams), Opened(nursery, streams)
        reader = await read.reader()
        for each in (read, left):
            await each.source.end()
        assert reader.has_ended
        begun = trio.current_time()
        await streams.wait_read()
        assert trio.current_time() - begun == pytest.approx(HOLD_SECONDS)
        assert streams.num_streams == 0


async def test_the_server_ends_all_streams(autojump_clock: MockClock) -> None:
    async with running() as (nursery, streams):
        it = Opened(nursery, streams)
        await it.source.send("a")
    assert (it.source.is_closed, it.source.num_ends) == (True, 1)


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "comment", "leave", "lose", "come", "wait"]), st.integers(1, 5)), max_size=30
)


@given(STEPS, st.sampled_from([500, 1 << 20]))
def test_any_disconnects_and_resumes_yield_each_event_once_and_in_order(steps: list[Step], max_bytes: int) -> None:
    """A client that leaves may lose the last events that were sent to it. It gets them again, or the error that they
    are not kept.
    """

    async def main() -> None:
        async with opened(max_bytes=max_bytes) as it:
            texts: list[str] = []
            got: list[tuple[int, str]] = []

            async def come() -> Reader:
                return await it.reader(len(got))

            reader: Reader | None = await come()
            for action, number in steps:
                if action == "send":
                    new = [f"text {len(texts) + each}" for each in range(number)]
                    texts += new
                    await it.source.send(*new)
                elif action == "comment":
                    await it.source.send(": ping")
                elif action == "wait":
                    await trio.sleep(number)
                if action in ("leave", "lose") and reader is not None:
                    await reader.leave()
                    got += reader.received[: -number if action == "lose" else None]
                    reader = None
                try:
                    if reader is None and action in ("come", "wait"):
                        reader = await come()
                except ApiError as error:
                    if error.status != 410 or max_bytes > 500:
                        raise
                    return
                assert got == numbered(*texts)[: len(got)]
            await it.source.end()
            if reader is not None:
                got += reader.received
                assert reader.has_ended
                assert got == numbered(*texts)

    trio.run(main, clock=MockClock(autojump_threshold=0))
