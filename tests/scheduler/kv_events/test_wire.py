"""KV events: a consumer that applies them has exactly the pages that the cache has, on each medium."""

import threading
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.cache import KVCache
from kvcache.disk import DiskTier
from kvcache.events import Block, Medium
from kvcache.lanes import LaneLayout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, KVHandle
from scheduler.kv_events.wire import (
    AllBlocksCleared,
    Batch,
    BlockRemoved,
    BlockStored,
    Change,
    Cleared,
    Event,
    Removed,
    Stored,
    as_events,
    block_hash,
)
from tests.kvcache.fakes import FakeMemory, as_bytes
from tests.kvcache.test_moving import in_use
from tests.kvcache.test_refusals import Refusals, RefusingLanes, RefusingMemory
from tests.kvcache.test_tiers import PREFIXES, SECONDS, VERSION, text
from tests.scheduler.kv_events.consumer import Consumer


class Recorder:
    """Records the changes, from all threads."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._lock = threading.Lock()

    def stored(self, medium: Medium, block: Block) -> None:
        with self._lock:
            self.changes.append(Stored(medium, block))

    def removed(self, medium: Medium, digest: bytes) -> None:
        with self._lock:
            self.changes.append(Removed(medium, digest))

    def take(self) -> list[Event]:
        with self._lock:
            changes, self.changes = self.changes, []
        return as_events(changes)


class Followed:
    """A cache with a disk tier, in a memory that sometimes refuses, and a consumer of its events."""

    def __init__(self, folder: Path, seed: int, *, lanes: bool) -> None:
        self.random = Random(seed)
        self.folder = folder
        self.lanes = lanes
        self.consumer = Consumer()
        self.salts: dict[int, bytes] = {}
        """The salt of each block."""
        self.open()

    def open(self) -> None:
        self.recorder = Recorder()
        self.disk = DiskTier(self.folder, VERSION, 40 * PAGE_BYTES, self.recorder)
        self.earlier = set(self.disk.digests())
        self.tier = PageTier(16 * PAGE_BYTES, self.disk, self.recorder)
        self.memory = self.other_memory(10)
        self.cache = KVCache(self.memory, self.layout(10, 4), self.tier, listener=self.recorder)
        self.running: dict[KVHandle, list[int]] = {}
        self.consumer.apply(AllBlocksCleared())

    def other_memory(self, num_pages: int) -> RefusingMemory:
        memory = RefusingLanes(num_pages) if self.lanes else RefusingMemory(num_pages)
        memory.refusals = self.refusals = Refusals()
        return memory

    def layout(self, num_pages: int, num_ids: int) -> LaneLayout | PoolLayout:
        if self.lanes:
            return LaneLayout(num_pages, num_ids, keeps_evicted=True)
        return PoolLayout(num_pages, num_ids, max_cached=num_pages // 2)

    # -- what happens to it ------------------------------------------------------------------------------------------

    def start(self) -> None:
        prefix, salt = self.random.choice(PREFIXES), self.random.choice([b"", b"salt"])
        tokens = prefix[: self.random.randint(1, 114)] + text(1000 * self.random.randint(1, 9), 50)
        while (hit := self.cache.lookup(as_bytes(tokens), salt=salt)).stored.arriving:
            self.cache.wait()
        handle = self.cache.acquire(as_bytes(tokens), hit)
        if handle is not None:
            self.running[handle] = tokens

    def one(self) -> KVHandle | None:
        return self.random.choice(list(self.running)) if self.running else None

    def grow(self) -> None:
        if (handle := self.one()) is not None:
            tokens = self.running[handle]
            more = tokens[handle.num_tokens :] or text(5000 + handle.num_tokens, self.random.randint(1, 70))
            if self.cache.reserve(handle, handle.num_tokens + len(more)):
                self.running[handle] = tokens[: handle.num_tokens] + more
                self.memory.compute(handle.id, handle.num_tokens, more)
                self.cache.commit(handle, as_bytes(more))

    def fail(self) -> None:
        if (handle := self.one()) is not None and self.cache.reserve(handle, handle.num_tokens + 1):
            self.memory.compute(handle.id, handle.num_tokens, [1])
            self.cache.rollback(handle)

    def finish(self) -> None:
        if (handle := self.one()) is not None:
            del self.running[handle]
            self.cache.release(handle)

    def discard(self) -> None:
        if (handle := self.one()) is not None:
            del self.running[handle]
            self.cache.discard(handle)

    def refuse(self) -> None:
        self.refusals.left = [self.random.random() < 0.5 for _ in range(3)]

    def evict(self) -> None:
        self.cache.evict_oldest()

    def move(self) -> None:
        num_pages = in_use(list(self.running), lanes=self.lanes) + self.random.randint(0, 8)
        memory = self.other_memory(num_pages)
        self.refuse()
        self.cache.move(memory, self.layout(num_pages, max(1, len(self.running)) + self.random.randint(0, 3)))
        self.memory = memory

    def restart(self) -> None:
        self.cache.close(SECONDS)
        self.check()
        self.open()

    def step(self) -> None:
        rare = [self.fail, self.discard, self.refuse, self.evict, self.move, self.restart]
        often = [self.start, self.grow, self.grow, self.finish]
        self.random.choices([*often, *rare], weights=[12] * len(often) + [1] * len(rare))[0]()

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        stored, handles = self.consumer.stored, self.cache._handles
        with self.disk._changed:  # the disk's thread waits meanwhile
            for event in self.recorder.take():
                self.consumer.apply(event)
            held = {page for handle in handles for page in handle.pages}
            assert stored[Medium.GPU] == {block_hash(page.digest) for page in held}
            entries = self.tier._entries.values()
            assert stored[Medium.CPU] == {block_hash(each.digest) for each in entries if each.is_full}
            on_disk = set(self.disk.digests())
            assert stored[Medium.DISK] <= set(map(block_hash, on_disk))
            written = {block_hash(digest) for digest in on_disk - self.earlier}
            assert written & self.consumer.blocks.keys() <= stored[Medium.DISK], "all but the tails"
        for handle in handles:
            parent = None
            for page in handle.pages:
                own = block_hash(page.digest)
                assert self.consumer.blocks[own] == (parent, tuple(memoryview(page.key).cast("i")))
                assert self.salts.setdefault(own, handle.root.key) == handle.root.key, "no other salt has this hash"
                parent = own


@pytest.mark.parametrize("lanes", [False, True])
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=6, deadline=None)
def test_a_consumer_has_what_the_cache_has(lanes: bool, seed: int) -> None:
    with TemporaryDirectory() as folder:
        followed = Followed(Path(folder), seed, lanes=lanes)
        for _ in range(150):
            followed.step()
            followed.cache.check_integrity()
            followed.check()
        followed.cache.close(SECONDS)


@pytest.mark.parametrize("lanes", [False, True])
def test_the_events_are_of_all_media(tmp_path: Path, lanes: bool) -> None:
    """The test above would also pass with a cache that keeps nothing."""
    followed, seen = Followed(tmp_path, 5, lanes=lanes), set()
    for _ in range(300):
        followed.step()
        followed.check()
        seen |= {medium for medium, blocks in followed.consumer.stored.items() if blocks}
    followed.cache.close(SECONDS)
    assert (seen, len(followed.consumer.blocks) > 50) == ({"GPU", "CPU", "DISK"}, True)


def test_pages_that_follow_each_other_share_an_event() -> None:
    recorder, memory = Recorder(), FakeMemory(12)
    cache = KVCache(memory, PoolLayout(12, 3), listener=recorder)
    handles = []
    for tokens in (text(0, 70), text(0, 32) + text(500, 40)):
        handle = cache.acquire(as_bytes(tokens))
        assert handle is not None
        memory.compute(handle.id, handle.num_tokens, tokens[handle.num_tokens :])
        cache.commit(handle, as_bytes(tokens[handle.num_tokens :]))
        handles.append(handle)
    first, second = recorder.take()
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert (len(first.block_hashes), first.parent_block_hash, first.token_ids) == (2, None, text(0, 64))
    assert (second.parent_block_hash, second.token_ids) == (first.block_hashes[0], text(500, 32))
    cache.discard(handles[0])
    assert recorder.take() == [BlockRemoved(first.block_hashes[1:], "GPU")], "the second sequence has the first page"
    cache.discard(handles[1])
    assert recorder.take() == [BlockRemoved([first.block_hashes[0], *second.block_hashes], "GPU")]


def test_nothing_is_reported_of_states_that_cannot_be_shared() -> None:
    recorder, memory = Recorder(), FakeMemory(8)
    cache = KVCache(memory, PoolLayout(8, 2), sharing=False, listener=recorder)
    handle = cache.acquire(as_bytes(text(0, 70)))
    assert handle is not None
    memory.compute(handle.id, 0, text(0, 70))
    cache.commit(handle, as_bytes(text(0, 70)))
    cache.release(handle)
    assert recorder.take() == []


def test_the_encoded_form_is_that_of_vllm() -> None:
    block = Block(bytes(range(16)), None, as_bytes(text(7, PAGE_TOKENS)))
    changes: list[Change] = [Cleared(), Stored(Medium.GPU, block), Removed(Medium.CPU, b"\xff" * 16)]
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Batch(1.5, as_events(changes))))
    stored = {
        "type": "BlockStored",
        "block_hashes": [0x0001020304050607],
        "parent_block_hash": None,
        "token_ids": text(7, PAGE_TOKENS),
        "block_size": 32,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    removed = {"type": "BlockRemoved", "block_hashes": [(1 << 64) - 1], "medium": "CPU"}
    assert sent == [1.5, [{"type": "AllBlocksCleared"}, stored, removed], 0]
