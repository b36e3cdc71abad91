"""The cache with an unknown layout and an unknown tier: it uses only the methods of their protocols."""

from collections.abc import Collection, Sequence

import pytest
from hypothesis import settings

from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Eviction, Layout, Placement
from kvcache.memory import Blob, Memory
from kvcache.pool import PoolLayout
from kvcache.tier import NO_TIER, Tier, TierStatistics
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES, Hit, KVHandle, Page, Stored, num_pages_for
from tests.kvcache.fakes import FakeMemory, as_bytes
from tests.kvcache.test_tiers import Tiered, TierMachine, text


class OneSequence:
    """A layout with one sequence id. The idle sequence is continued if the hit covers all of it, otherwise evicted."""

    num_ids = 1
    merges = False

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.handle: KVHandle | None = None

    @property
    def max_pages(self) -> int:
        return self.num_pages

    @property
    def num_free(self) -> int:
        return self.num_pages - (self.handle.num_pages if self.handle is not None else 0)

    @property
    def num_cached(self) -> int:
        return self.handle.num_pages if self.handle is not None and not self.handle.running else 0

    @property
    def free_ids(self) -> Sequence[int]:
        return [] if self.handle is not None else [0]

    def place(self, hit: Hit, num_tokens: int, spare_pages: int) -> Placement | None:
        if num_pages_for(num_tokens) > self.num_pages or (self.handle is not None and self.handle.running):
            return None
        if self.handle is None or hit.adoptable:
            return Placement(0, hit, adopts=hit.adoptable)
        return Placement(0, hit, eviction=Eviction(self.handle))

    def has_room(self, handle: KVHandle, num_pages: int) -> bool:
        return handle.num_pages + num_pages <= self.num_pages

    def make_room(self, num_pages: int) -> Sequence[Eviction]:
        return ()

    def adopt(self, handles: Collection[KVHandle]) -> None:
        self.handle = next(iter(handles), None)

    def start(self, handle: KVHandle, pages: Sequence[Page]) -> None:
        self.handle = handle

    def reserve(self, num_pages: int) -> None: ...

    def merge(self, page: Page) -> None:
        raise AssertionError("no other handle can hold a page")

    def release(self, handle: KVHandle) -> None: ...

    def free(self, num_pages: int) -> None: ...

    def drop(self, handle: KVHandle) -> None:
        self.handle = None

    def check_integrity(self, handles: Collection[KVHandle], pages: Collection[Page]) -> None:
        assert handles == ({self.handle} if self.handle is not None else set())


class Archive:
    """A tier that keeps the pages of every sequence for ever, and finds only whole sequences."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[Blob]] = {}

    def find(self, tokens: bytes, hit: Hit) -> Stored:
        found = max((kept for kept in self.kept if tokens.startswith(kept)), key=len, default=b"")
        num_tokens = len(found) // TOKEN_BYTES
        return Stored(0, num_tokens, self.kept[found]) if num_tokens > hit.num_tokens else Stored()

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None:
        if handle.num_tokens:
            self.kept[handle.tokens] = memory.save(handle.id, 0, handle.num_tokens)

    def wait(self) -> None: ...

    def close(self, seconds: float) -> None: ...

    def statistics(self) -> TierStatistics:
        return TierStatistics(host_pages=len(self.kept))

    def check_integrity(self) -> None: ...


class Assembled(Tiered):
    def __init__(self, layout: Layout, tier: Tier = NO_TIER, *, sharing: bool = True) -> None:
        self.memory = FakeMemory(layout.num_pages)
        self.cache = KVCache(self.memory, layout, tier, sharing=sharing)


def test_a_layout_decides_placement_and_eviction() -> None:
    cache = Assembled(OneSequence(num_pages=6))
    assert cache.run(text(0, 50)) == 0
    assert cache.run(text(0, 90)) == 50, "the only sequence is continued"
    assert cache.run(text(500, 40)) == 0
    assert cache.run(text(0, 90)) == 0, "it was evicted"
    statistics = cache.cache.statistics()
    assert (statistics.evicted_pages, statistics.cached_pages, statistics.free_pages) == (3 + 2, 3, 3)
    handle = cache.cache.acquire(as_bytes(text(0, 100)))
    assert handle is not None
    assert cache.cache.acquire(as_bytes(text(0, 100))) is None, "nothing is idle"
    assert not cache.cache.reserve(handle, 6 * PAGE_TOKENS + 1)


@pytest.mark.parametrize(
    "layout",
    [OneSequence(6), PoolLayout(6, 2), LaneLayout(6, 2, keeps_evicted=True)],
    ids=lambda layout: type(layout).__name__,
)
def test_evicted_tokens_are_loaded_from_any_tier(layout: Layout) -> None:
    archive = Archive()
    cache = Assembled(layout, archive)
    for start in (0, 1000, 2000):
        assert cache.run(text(start, 150)) == 0
    assert cache.cache.statistics().host_pages == len(archive.kept) > 0
    assert cache.run(text(0, 170)) == 150
    assert cache.cache.statistics().loaded_tokens == 150


@pytest.mark.parametrize("num_prompt_tokens", [0, 40])
def test_a_state_that_cannot_be_shared_is_kept_in_the_tier_only(num_prompt_tokens: int) -> None:
    archive = Archive()
    cache = Assembled(OneSequence(num_pages=6), archive, sharing=False)
    assert not cache.cache.sharing
    handle = cache.cache.acquire(as_bytes(text(0, 60)))
    assert handle is not None
    for part in (text(0, num_prompt_tokens), text(num_prompt_tokens, 60 - num_prompt_tokens)):
        cache.memory.compute(handle.id, handle.num_tokens, part)
        cache.cache.commit(handle, as_bytes(part))
        cache.cache.prompt_done(handle)
    cache.cache.release(handle)
    assert cache.cache.num_free == cache.cache.num_pages
    assert {len(kept) // TOKEN_BYTES for kept in archive.kept} == {num_prompt_tokens, 60} - {0}
    assert cache.run(text(0, 50)) == num_prompt_tokens
    assert cache.run(text(0, 70)) == 60


class PartsMachine(TierMachine):
    """The same events with the unknown layout and tier."""

    def open(self) -> None:
        self.tiered = Assembled(OneSequence(num_pages=10), Archive())


TestPartsMachine = PartsMachine.TestCase
TestPartsMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
