"""A consumer of KV events, such as a router."""

from collections import defaultdict

import msgspec
import zmq

from kvcache.tree import PAGE_TOKENS
from scheduler.kv_events.publisher import END_SEQ
from scheduler.kv_events.wire import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event

Socket = zmq.Socket[bytes]


class Consumer:
    """Applies events in order, and refuses those that contradict what it knows."""

    def __init__(self) -> None:
        self.stored: dict[str, set[int]] = defaultdict(set)
        """The hashes of the blocks on each medium."""
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        """Parent and tokens of all blocks that were ever stored."""

    def receive(self, payload: bytes) -> Batch:
        batch = msgspec.msgpack.decode(payload, type=Batch)
        for event in batch.events:
            self.apply(event)
        return batch

    def apply(self, event: Event) -> None:
        match event:
            case BlockStored():
                assert event.block_size == PAGE_TOKENS
                assert len(event.token_ids) == PAGE_TOKENS * len(event.block_hashes)
                parent, tokens = event.parent_block_hash, iter(event.token_ids)
                for each in event.block_hashes:
                    assert each not in self.stored[event.medium], "stored once"
                    self.stored[event.medium].add(each)
                    block = parent, tuple(next(tokens) for _ in range(PAGE_TOKENS))
                    assert self.blocks.setdefault(each, block) == block, "a hash stands for one prefix"
                    parent = each
            case BlockRemoved():
                for each in event.block_hashes:
                    self.stored[event.medium].remove(each)
            case AllBlocksCleared():
                self.stored.clear()


def replayed(dealer: Socket, start: int) -> list[tuple[int, bytes]]:
    """Returns the batches from this sequence number on. Their topic must be `kv`."""
    dealer.send_multipart((b"", start.to_bytes(8, "big")))
    batches: list[tuple[int, bytes]] = []
    while True:
        empty, topic, seq, batch = dealer.recv_multipart()
        assert empty == b""
        if seq == END_SEQ:
            assert (topic, batch) == (b"", b"")
            return batches
        assert topic == b"kv"
        batches.append((int.from_bytes(seq, "big"), batch))


def wait_for(dealer: Socket, number: int) -> list[Batch]:
    """Asks again and again until so many events were sent. Returns their batches."""
    while True:
        consumer = Consumer()
        batches = [consumer.receive(batch) for _, batch in replayed(dealer, 0)]
        if sum(len(batch.events) for batch in batches) >= number:
            return batches
