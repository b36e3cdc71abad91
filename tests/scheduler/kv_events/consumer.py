"""A consumer of KV events, such as a router."""

from collections import defaultdict

import msgspec

from kvcache.tree import PAGE_TOKENS
from scheduler.kv_events.wire import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event


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
