"""A cache goes on in another memory: larger or smaller, in both layouts, with all that its sequences share."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tier import NO_TIER, Tier
from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, KVHandle
from kvcache.whole import WholeTier
from tests.kvcache.fakes import FakeLanes, FakeMemory, as_bytes
from tests.kvcache.test_refusals import (
    RefusalMachine,
    Refusals,
    RefusingLanes,
    RefusingMemory,
    WindowLanes,
    WindowMachine,
    WindowMemory,
)
from tests.kvcache.test_tiers import TierMachine, text
from tests.kvcache.test_whole import States


def in_use(handles: list[KVHandle], *, lanes: bool) -> int:
    """Returns the pages that the running handles need: of the longest one in lanes, of all together in a pool."""
    if lanes:
        return max((handle.num_pages for handle in handles), default=1)
    pages = {page for handle in handles for page in handle.pages}
    return len(pages) + sum(handle.num_pages - len(handle.pages) for handle in handles)


def layout_of(num_pages: int, num_ids: int, *, lanes: bool) -> Layout:
    return LaneLayout(num_pages, num_ids, keeps_evicted=True) if lanes else PoolLayout(num_pages, num_ids)


PREFIXES = [text(0, 24), text(0, 24) + text(300, 60), text(0, 24) + text(300, 8) + text(400, 40), text(600, 96)]


@pytest.mark.parametrize("lanes", [False, True])
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=8, deadline=None)
def test_pages_and_ids_are_conserved_through_200_moves(lanes: bool, seed: int) -> None:
    random = Random(seed)
    memory: FakeMemory = FakeLanes(6) if lanes else FakeMemory(12)
    cache = KVCache(memory, layout_of(6 if lanes else 12, 5, lanes=lanes), PageTier(40 * PAGE_BYTES))
    known: dict[KVHandle, list[int]] = {}

    def start() -> None:
        tokens = random.choice(PREFIXES)[: random.randint(1, 96)] + text(1000 * random.randint(1, 4), 40)
        handle = cache.acquire(as_bytes(tokens), cache.lookup(as_bytes(tokens)))
        if handle is not None:
            known[handle] = tokens

    def grow() -> None:
        if known:
            handle = random.choice(list(known))
            tokens = known[handle]
            wanted = tokens[handle.num_tokens :] or text(5000, random.randint(1, 60))
            if cache.reserve(handle, handle.num_tokens + len(wanted)):
                known[handle] = tokens[: handle.num_tokens] + wanted
                memory.compute(handle.id, handle.num_tokens, wanted)
                cache.commit(handle, as_bytes(wanted))

    def finish() -> None:
        if known:
            handle = random.choice(list(known))
            del known[handle]
            cache.release(handle)

    for _ in range(200):
        random.choice([start, start, grow, grow, finish])()
        num_pages = random.randint(in_use(list(known), lanes=lanes), 20)
        num_ids = random.randint(max(1, len(known)), 8)
        found = {tuple(prefix): cache.lookup(as_bytes(prefix)).num_known for prefix in PREFIXES}
        memory = FakeLanes(num_pages) if lanes else FakeMemory(num_pages)
        assert not cache.move(memory, layout_of(num_pages, num_ids, lanes=lanes)), "no running sequence is lost"
        cache.check_integrity()
        assert cache.num_free + cache.num_cached + cache.num_held == num_pages * (num_ids if lanes else 1)
        assert sorted(handle.id for handle in known) == list(range(len(known))), "running ids are consecutive"
        for handle, tokens in known.items():
            assert memory.tokens(handle.id) == tokens[: handle.num_tokens]
        assert memory.num_used <= (cache.num_held + cache.num_cached) * PAGE_TOKENS
        for prefix, length in found.items():
            assert cache.lookup(as_bytes(list(prefix))).num_known >= length, "the tier has what has no room"


class MovingMachine(TierMachine):
    """The events of a cache with a tier, and moves between them into other memories."""

    @rule(more_pages=st.integers(0, 8), more_ids=st.integers(0, 4), refuses=st.lists(st.booleans(), max_size=3))
    def move(self, more_pages: int, more_ids: int, refuses: list[bool]) -> None:
        running, lanes = list(self.running), isinstance(self.tiered.memory, FakeLanes)
        num_pages = in_use(running, lanes=lanes) + more_pages
        memory = self.other(num_pages, refuses)
        layout = layout_of(num_pages, max(1, len(running)) + more_ids, lanes=lanes)
        lost = self.tiered.cache.move(memory, layout)
        self.tiered.memory = memory
        for handle in lost:
            assert (handle.num_tokens, handle.num_pages) == (0, 0)
            assert not memory.cells.get(handle.id)

    def other(self, num_pages: int, refuses: list[bool]) -> FakeMemory:
        """Returns another memory. The second argument says whether it refuses its next operations."""
        raise NotImplementedError


class RefusedMoves(MovingMachine, RefusalMachine):
    def other(self, num_pages: int, refuses: list[bool]) -> FakeMemory:
        memory = RefusingLanes(num_pages) if self.lanes else RefusingMemory(num_pages)
        memory.refusals = self.refusals = Refusals()
        self.refusals.left = refuses
        return memory


class RefusedLaneMoves(RefusedMoves):
    lanes = True


class WindowMoves(MovingMachine, WindowMachine):
    """`WindowMemory.compute` asserts that the window before each new token is there."""

    def other(self, num_pages: int, refuses: list[bool]) -> FakeMemory:
        self.window = WindowLanes(num_pages) if self.lanes else WindowMemory(num_pages)
        return self.window


class WindowLaneMoves(WindowMoves):
    lanes = True


FEW = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestRefusedMoves = RefusedMoves.TestCase
TestRefusedMoves.settings = FEW
TestRefusedLaneMoves = RefusedLaneMoves.TestCase
TestRefusedLaneMoves.settings = FEW
TestWindowMoves = WindowMoves.TestCase
TestWindowMoves.settings = FEW
TestWindowLaneMoves = WindowLaneMoves.TestCase
TestWindowLaneMoves.settings = FEW


class Moving:
    """A cache whose sequences are computed at once."""

    def __init__(self, memory: FakeMemory, layout: Layout, tier: Tier = NO_TIER) -> None:
        self.memory = memory
        self.cache = KVCache(memory, layout, tier)

    def run(self, tokens: list[int]) -> KVHandle:
        handle = self.cache.acquire(as_bytes(tokens))
        assert handle is not None
        self.memory.compute(handle.id, handle.num_tokens, tokens[handle.num_tokens :])
        self.cache.commit(handle, as_bytes(tokens[handle.num_tokens :]))
        return handle

    def move(self, memory: FakeMemory, layout: Layout) -> list[KVHandle]:
        lost = self.cache.move(memory, layout)
        self.memory = memory
        self.cache.check_integrity()
        return lost


def test_cells_that_sequences_share_in_a_pool_stay_shared() -> None:
    moving = Moving(FakeMemory(20), PoolLayout(20, 8))
    handles = [moving.run(text(0, 96) + text(1000 * number, 10)) for number in range(4)]
    moving.cache.release(handles[2])
    used = moving.memory.num_used
    assert moving.move(FakeMemory(40), PoolLayout(40, 8)) == []
    assert moving.memory.num_used == used
    assert moving.cache.num_held == 3 + 3
    moving.run(text(0, 96) + text(2000, 5))
    assert moving.memory.num_used == used + 1, "the last token of the hit is computed"


def test_a_sequence_that_cannot_be_moved_is_computed_again() -> None:
    memory = RefusingLanes(4)
    memory.refusals = Refusals()
    memory.refusals.left = [True]
    moving = Moving(FakeLanes(4), LaneLayout(4, 2))
    first, second = moving.run(text(0, 50)), moving.run(text(500, 50))
    assert moving.move(memory, LaneLayout(8, 2)) == [first]
    assert (first.num_tokens, second.num_tokens) == (0, 50)
    moving.cache.release(first)
    assert moving.run(text(0, 50)).num_tokens == 50


def test_idle_sequences_without_room_go_to_the_tier_the_latest_used_stays() -> None:
    moving = Moving(FakeLanes(4), LaneLayout(4, 4, keeps_evicted=True), PageTier(1 << 20))
    for handle in [moving.run(text(1000 * number, 50)) for number in range(4)]:
        moving.cache.release(handle)
    assert moving.cache.count_tokens() == (0, 200)
    moving.move(FakeLanes(4), LaneLayout(4, 1, keeps_evicted=True))
    assert moving.memory.tokens(0) == text(3000, 50)
    assert moving.run(text(1000, 60)).num_tokens == 60
    assert moving.cache.statistics().loaded_tokens == 50
    assert moving.cache.evict_oldest() == 0, "the only lane is taken"


def test_states_that_cannot_be_cut_keep_their_shared_pages_only_once() -> None:
    """The second sequence gets private pages, as its state holds all of its cells once more."""
    moving = Moving(WindowMemory(20), PoolLayout(20, 8), WholeTier(1 << 20))
    first, second = (moving.run(text(0, 64) + text(start, 10)) for start in (500, 600))
    idle = moving.run(text(0, 64) + text(700, 10))
    moving.cache.release(idle)
    assert moving.cache.num_held == 2 + 2
    assert moving.move(WindowMemory(20), PoolLayout(20, 8)) == []
    assert moving.cache.num_held == 3 + 3
    assert moving.memory.num_used == 2 * 74
    assert [handle.last_page.private for handle in (first, second)] == [False, True]
    assert moving.run(text(0, 64) + text(700, 20)).num_tokens == 84
    assert moving.cache.statistics().loaded_tokens == 74, "the idle one is in the tier"


def test_without_room_for_its_shared_pages_a_state_is_computed_again() -> None:
    moving = Moving(WindowMemory(20), PoolLayout(20, 8))
    _, second = (moving.run(text(0, 64) + text(start, 10)) for start in (500, 600))
    assert moving.move(WindowMemory(4), PoolLayout(4, 8)) == [second]


@pytest.mark.parametrize("layout", [PoolLayout(20, 4), LaneLayout(8, 4)])
def test_recurrent_states_move_whole(layout: Layout) -> None:
    old, new = States(), States()
    cache = KVCache(old, PoolLayout(20, 4) if isinstance(layout, PoolLayout) else LaneLayout(8, 4), sharing=False)
    handles = []
    for tokens in (text(0, 50), text(0, 70)):
        handle = cache.acquire(as_bytes(tokens))
        assert handle is not None
        old.compute(handle.id, tokens)
        cache.commit(handle, as_bytes(tokens))
        handles.append(handle)
    cache.release(handles[0])
    assert cache.move(new, layout) == []
    assert new.read == {0: text(0, 70)}
    assert handles[1].id == 0
    cache.check_integrity()
