"""The publisher on real sockets: batches in order, replay, the end, and failures at the start."""

import sys
from collections.abc import Callable, Iterator

import pytest
import zmq

from kvcache.events import Block, Medium
from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.kv_events import publisher as module
from scheduler.kv_events.opening import open_publisher
from scheduler.kv_events.publisher import Publisher
from scheduler.kv_events.wire import AllBlocksCleared
from tests.kvcache.fakes import as_bytes
from tests.scheduler.kv_events.consumer import Consumer, Socket, replayed, wait_for

FREE = "tcp://127.0.0.1:*"
MILLISECONDS = 60_000
"""More than any machine needs."""
Connect = Callable[[int, str], Socket]


def block(number: int) -> Block:
    return Block(number.to_bytes(8, "big") + bytes(8), None, as_bytes([number] * 32))


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes sockets of a kind that are connected to an endpoint."""
    opened = []

    def connected(kind: int, endpoint: str) -> Socket:
        opened.append(context.socket(kind))
        opened[-1].connect(endpoint)
        return opened[-1]

    with zmq.Context() as context:
        context.setsockopt(zmq.RCVTIMEO, MILLISECONDS)
        yield connected
        for each in opened:
            each.close(linger=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher(FREE, FREE, "kv", clock=lambda: 12.0)
    yield publisher
    publisher.close()


def test_a_subscriber_gets_numbered_batches(publisher: Publisher, connect: Connect) -> None:
    subscriber = connect(zmq.SUB, publisher.endpoints[0])
    subscriber.subscribe(b"kv")
    publisher.start()
    consumer, number, expected = Consumer(), 0, 0
    while len(consumer.stored["GPU"]) < 3:  # the first batches are lost until the subscription has arrived
        number += 1
        publisher.stored(Medium.GPU, block(number))
        if subscriber.poll(50):
            topic, seq, payload = subscriber.recv_multipart()
            assert topic == b"kv"
            expected = expected or int.from_bytes(seq, "big")
            assert int.from_bytes(seq, "big") == expected
            expected += 1
            batch = consumer.receive(payload)
            assert (batch.ts, batch.data_parallel_rank) == (12.0, 0)


def test_past_batches_are_sent_again(publisher: Publisher, connect: Connect) -> None:
    dealer = connect(zmq.DEALER, publisher.endpoints[1])
    publisher.start()
    assert wait_for(dealer, 1)[0].events == [AllBlocksCleared()], "an engine begins with nothing"
    for number in range(3):
        publisher.stored(Medium.GPU, block(number))
        wait_for(dealer, number + 2)
    publisher.removed(Medium.GPU, block(1).digest)
    wait_for(dealer, 5)
    assert [seq for seq, _ in replayed(dealer, 0)] == [0, 1, 2, 3, 4]
    assert [seq for seq, _ in replayed(dealer, 3)] == [3, 4]
    assert replayed(dealer, 99) == []
    consumer = Consumer()
    for _, batch in replayed(dealer, 0):
        consumer.receive(batch)
    assert consumer.stored == {"GPU": {0, 2}}


def test_a_malformed_request_gets_no_answer_and_does_no_harm(publisher: Publisher, connect: Connect) -> None:
    publisher.start()
    bad, good = (connect(zmq.DEALER, publisher.endpoints[1]) for _ in range(2))
    for frames in ((b"",), (b"", b"5"), (b"", bytes(8), b""), (b"", bytes(module.MAX_REQUEST_BYTES + 1))):
        bad.send_multipart(frames)
    assert wait_for(good, 1)
    assert not bad.poll(0)


@pytest.mark.parametrize(("limit", "value"), [("BUFFER_BATCHES", 2), ("BUFFER_BYTES", 400)])
def test_the_buffer_is_bounded(limit: str, value: int, monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    publisher = Publisher(FREE, FREE, "kv")
    monkeypatch.setattr(module, limit, value)
    dealer = connect(zmq.DEALER, publisher.endpoints[1])
    publisher.start()
    for number in range(6):
        publisher.stored(Medium.GPU, block(number))
        while not (batches := replayed(dealer, 0)) or str(number) not in str(Consumer().receive(batches[-1][1])):
            pass
    assert 1 <= len(batches) <= 2
    publisher.close()


def test_the_end_says_that_nothing_is_stored(connect: Connect) -> None:
    publisher = Publisher(FREE)
    subscriber = connect(zmq.SUB, publisher.endpoints[0])
    subscriber.subscribe(b"")
    publisher.start()
    number = 0
    while not subscriber.poll(50):
        publisher.stored(Medium.GPU, block(number))
        number += 1
    publisher.close()
    while True:
        batch = Consumer().receive(subscriber.recv_multipart()[2])
        if batch.events[-1] == AllBlocksCleared() and b"" != None:
            break


def test_a_publisher_that_never_started_closes() -> None:
    endpoint = Publisher(FREE)
    first = endpoint.endpoints[0]
    endpoint.close()
    Publisher(first).close()


def config(**options: str) -> EngineConfig:
    return EngineConfig("m.gguf", **options)  # type: ignore[arg-type]


def test_without_the_flag_nothing_is_opened() -> None:
    assert open_publisher(config()) is None


def test_a_port_in_use_is_one_clear_line() -> None:
    first = open_publisher(config(kv_events=FREE))
    assert first is not None
    taken = first.endpoints[0]
    for options in ({"kv_events": taken}, {"kv_events": FREE, "kv_events_replay": taken}):
        with pytest.raises(ModelError, match=rf"--kv-events: an endpoint .*: Address already in use .*{taken}.*; each"):
            open_publisher(config(**options))
    first.close()


@pytest.mark.parametrize("option", ["kv_events_replay", "kv_events_topic"])
def test_replay_and_topic_need_events(option: str) -> None:
    with pytest.raises(ModelError, match=f"^--{option.replace('_', '-')} needs --kv-events$"):
        open_publisher(config(**{option: FREE}))


@pytest.mark.parametrize("package", ["zmq", "msgspec"])
def test_without_the_packages_the_error_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("scheduler.kv_events.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModelError, match=r"^--kv-events needs the extra 'events': pip install 'cortex-server\[events\]'"
    ):
        open_publisher(config(kv_events=FREE))
