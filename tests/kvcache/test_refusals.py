"""The cache on memories that refuse: they share, load, cut and save only sometimes, or forget what left a window.

No refusal may raise an exception, break the accounting, or let a sequence continue without the KV that it needs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kvcache.cache import KVCache
from kvcache.disk import DiskTier
from kvcache.lanes import LaneLayout
from kvcache.memory import Blob
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_BYTES, TOKEN_BYTES, KVHandle
from kvcache.whole import WholeTier
from tests.kvcache.fakes import FakeLanes, FakeMemory, as_bytes
from tests.kvcache.test_tiers import VERSION, Tiered, TieredLanes, TierMachine, text

WINDOW = 20


class Refusals:
    """Operations that are refused, in turn, until the list is empty."""

    def __init__(self) -> None:
        self.left: list[bool] = []

    def now(self) -> bool:
        return bool(self.left) and self.left.pop()


class RefusingMemory(FakeMemory):
    """Refuses what `refusals` says. A refusal damages the sequence as far as the protocol allows it."""

    refusals: Refusals

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        done = super().share(source, target, start, (start + stop) // 2 if self.refusals.now() else stop)
        return done and len(self.cells.get(target, {})) == stop

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        if (start or stop >= 0) and self.refusals.now():
            return False
        return super().remove(sequence_id, start, stop)

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return [] if self.refusals.now() else super().save(sequence_id, start, stop)

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        if self.refusals.now():
            super().remove(sequence_id, start // 2, -1)
            return False
        return super().load(sequence_id, start, stop, blobs)


class RefusingLanes(RefusingMemory, FakeLanes):
    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        return FakeLanes.share(self, source, target, start, stop // 2 if self.refusals.now() else stop) and (
            len(self.cells.get(target, {})) == stop
        )


class RefusalMachine(TierMachine):
    """The events of a cache with tiers, while the memory refuses some operations."""

    lanes = False

    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 30 * PAGE_BYTES)
        if self.lanes:
            self.tiered: Tiered = TieredLanes(lane_pages=9, num_ids=3, host_bytes=12 * PAGE_BYTES, disk=disk)
            memory: RefusingMemory = RefusingLanes(9)
            layout: LaneLayout | PoolLayout = LaneLayout(9, 3, keeps_evicted=True)
        else:
            self.tiered = Tiered(num_pages=10, host_bytes=12 * PAGE_BYTES, disk=disk, max_cached=4)
            memory = RefusingMemory(10)
            layout = PoolLayout(10, 4, max_cached=4)
        memory.refusals = self.refusals = Refusals()
        self.tiered.memory = memory
        self.tiered.cache = KVCache(memory, layout, self.tiered.tier)

    @rule(left=st.lists(st.booleans(), max_size=4))
    def refuse(self, left: list[bool]) -> None:
        self.refusals.left = left

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A step fails after it wrote a token."""
        handle = data.draw(st.sampled_from(list(self.running)))
        before, cache = handle.num_tokens, self.tiered.cache
        if cache.reserve(handle, before + 1):
            self.tiered.memory.compute(handle.id, before, [1])
            assert handle.num_tokens == before if cache.rollback(handle) else not handle.num_tokens


class LaneRefusalMachine(RefusalMachine):
    lanes = True


TestRefusalMachine = RefusalMachine.TestCase
TestRefusalMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestLaneRefusalMachine = LaneRefusalMachine.TestCase
TestLaneRefusalMachine.settings = TestRefusalMachine.settings


def test_a_prefix_that_is_not_shared_is_computed() -> None:
    for memory, layout in ((RefusingMemory(8), PoolLayout(8, 4)), (RefusingLanes(4), LaneLayout(4, 2))):
        memory.refusals = Refusals()
        cache = KVCache(memory, layout)
        first = acquired(cache, text(0, 40))
        memory.compute(first.id, 0, text(0, 40))
        cache.commit(first, as_bytes(text(0, 40)))
        memory.refusals.left = [True]
        second = acquired(cache, text(0, 40) + text(100, 20))
        assert (second.num_tokens, memory.cells.get(second.id, {})) == (0, {})
        assert cache.statistics().hit_tokens == 0
        cache.check_integrity()


def acquired(cache: KVCache, tokens: list[int]) -> KVHandle:
    handle = cache.acquire(as_bytes(tokens))
    assert handle is not None
    return handle


# Sliding windows


class WindowMemory(FakeMemory):
    """Also has the cells of layers with a sliding window, which forget positions outside of the window.

    Loses all that it may lose: cells that only one sequence uses and that left its window, as soon as `forget` says so.
    A saved state contains the last window only.
    """

    moves_pages = False

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.windows: dict[int, set[int]] = {}
        """Positions that the windows' cells still hold, by sequence id."""
        self.loaded: dict[int, int] = {}

    def compute(self, sequence_id: int, start: int, tokens: list[int]) -> None:
        held = self.windows.setdefault(sequence_id, set())
        assert held.issuperset(range(max(0, start - WINDOW + 1), start)), (
            "the window before the first new token is there"
        )
        held.update(range(start, start + len(tokens)))
        super().compute(sequence_id, start, tokens)

    def forget(self, sequence_id: int) -> None:
        held = self.windows.get(sequence_id, set())
        length = len(self.cells.get(sequence_id, {}))
        held.difference_update(range(length - WINDOW + 1))

    def intact_from(self, sequence_id: int) -> int:
        first = min(self.windows.get(sequence_id, set()), default=0)
        return max(self.loaded.get(sequence_id, 0), first + WINDOW - 1 if first else 0)

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        assert self.intact_from(source) <= stop
        super().share(source, target, start, stop)
        self.windows[target] = {p for p in self.windows[source] if p < stop}
        self.loaded[target] = self.loaded.get(source, 0)
        return True

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        assert self.intact_from(source) <= start
        super().merge(source, target, start, stop)
        self.windows[target] = (self.windows[target] - {*range(start, stop)}) | (
            self.windows[source] & {*range(start, stop)}
        )

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        super().remove(sequence_id, start, stop)
        held = self.windows.get(sequence_id, set())
        held.difference_update([p for p in held if p >= start and (stop < 0 or p < stop)])
        if not start:
            self.loaded.pop(sequence_id, None)
        return self.intact_from(sequence_id) <= start

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        assert (start, stop) == (0, len(self.cells[sequence_id])), "only whole sequences are moved"
        return [np.frombuffer(as_bytes(self.tokens(sequence_id)), np.uint8)]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        (state,) = blobs
        assert (start, stop * TOKEN_BYTES) == (0, state.nbytes)
        self.compute(sequence_id, 0, state.view("<i4").tolist())
        self.windows[sequence_id] = set(range(max(0, stop - WINDOW + 1), stop))
        self.loaded[sequence_id] = stop
        return True


class WindowLanes(WindowMemory, FakeLanes):
    """The same in lanes, where a share copies cells."""

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        assert self.intact_from(source) <= stop
        FakeLanes.share(self, source, target, start, stop)
        self.windows[target] = {p for p in self.windows[source] if p < stop}
        self.loaded[target] = self.loaded.get(source, 0)
        return True


class WindowMachine(TierMachine):
    """The events of a cache with a tier of whole sequences. `WindowMemory.compute` asserts what must hold."""

    lanes = False

    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 30 * PAGE_BYTES)
        self.tiered = Tiered(num_pages=10)
        self.window: WindowMemory = WindowLanes(9) if self.lanes else WindowMemory(10)
        self.tiered.memory = self.window
        layout = LaneLayout(9, 3, keeps_evicted=True) if self.lanes else PoolLayout(10, 4)
        self.tiered.cache = KVCache(self.window, layout, WholeTier(20 * PAGE_BYTES, disk))

    @rule(sequence_id=st.integers(0, 3))
    def forget(self, sequence_id: int) -> None:
        self.window.forget(sequence_id)


class LaneWindowMachine(WindowMachine):
    lanes = True


TestWindowMachine = WindowMachine.TestCase
TestWindowMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestLaneWindowMachine = LaneWindowMachine.TestCase
TestLaneWindowMachine.settings = TestWindowMachine.settings


class Windowed:
    """A pool of a model with a sliding window."""

    def __init__(self, num_pages: int = 12) -> None:
        self.memory = WindowMemory(num_pages)
        self.tier = WholeTier(1 << 20)
        self.cache = KVCache(self.memory, PoolLayout(num_pages, 4), self.tier)

    def run(self, tokens: list[int]) -> tuple[KVHandle, int]:
        """Computes a sequence. Returns its handle, which still runs, and how many tokens were found."""
        handle = acquired(self.cache, tokens)
        found = handle.num_tokens
        self.memory.compute(handle.id, found, tokens[found:])
        self.cache.commit(handle, as_bytes(tokens[found:]))
        self.cache.check_integrity()
        return handle, found

    def finish(self, tokens: list[int]) -> int:
        handle, found = self.run(tokens)
        self.cache.release(handle)
        self.cache.check_integrity()
        return found


def test_a_prefix_whose_window_is_lost_is_computed_and_replaces_the_idle_sequence() -> None:
    pool = Windowed()
    pool.finish(text(0, 100))
    pool.memory.forget(0)
    assert pool.finish(text(0, 50) + text(500, 10)) == 0
    assert pool.finish(text(0, 50) + text(600, 10)) == 50, "the second sequence has the whole prefix"
    assert pool.finish(text(0, 100) + text(700, 10)) == 100, "the tier has the first one"


def test_a_sequence_that_cannot_merge_with_a_running_one_keeps_its_own_cells() -> None:
    pool = Windowed()
    first, _ = pool.run(text(0, 64))
    pool.memory.forget(first.id)
    second, found = pool.run(text(0, 40))
    assert (found, pool.cache.statistics().merged_pages) == (0, 0)
    pool.cache.release(second)
    pool.cache.check_integrity()
    pool.cache.release(first)
    assert pool.finish(text(0, 40) + text(500, 9)) == 40, "its state was saved, as no other sequence could share it"


def test_a_loaded_sequence_continues_but_shares_no_shorter_prefix() -> None:
    pool = Windowed(num_pages=6)
    pool.finish(text(0, 100))
    pool.finish(text(5000, 150))  # evicts the first sequence
    assert pool.finish(text(0, 100) + text(600, 8)) == 100
    assert pool.finish(text(0, 30) + text(700, 8)) == 0
