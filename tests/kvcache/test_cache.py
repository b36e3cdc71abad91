"""The cache on a fake memory: sharing, eviction, and accounting."""

from collections import Counter
from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.pages import PageTier
from kvcache.pool import EVICTION_SHARE, PoolLayout
from kvcache.tier import NO_TIER, Tier
from kvcache.tree import PAGE_TOKENS, KVHandle, num_pages_for
from tests.kvcache.fakes import FakeLanes, FakeMemory, as_bytes


class Bench:
    """A cache on a fake memory."""

    def __init__(self, num_pages: int = 8, num_ids: int = 4) -> None:
        self.memory = FakeMemory(num_pages)
        self.cache = KVCache(self.memory, PoolLayout(num_pages, num_ids))

    def start(self, tokens: list[int], salt: bytes = b"") -> KVHandle:
        handle = self.cache.acquire(as_bytes(tokens), self.cache.lookup(as_bytes(tokens), salt=salt))
        assert handle is not None
        return handle

    def compute(self, handle: KVHandle, tokens: list[int]) -> None:
        assert self.cache.reserve(handle, handle.num_tokens + len(tokens))
        self.memory.compute(handle.id, handle.num_tokens, tokens)
        self.cache.commit(handle, as_bytes(tokens))
        self.cache.check_integrity()

    def run(self, tokens: list[int], salt: bytes = b"") -> KVHandle:
        """Acquire a handle and compute the tokens after the hit."""
        handle = self.start(tokens, salt)
        self.compute(handle, tokens[handle.num_tokens :])
        return handle

    def finish(self, tokens: list[int]) -> None:
        self.cache.release(self.run(tokens))
        self.cache.check_integrity()


def text(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


def test_everything_is_free_at_first() -> None:
    statistics = Bench().cache.statistics()
    assert (statistics.free_pages, statistics.cached_pages, statistics.held_pages) == (8, 0, 0)


def test_sequences_of_different_salts_share_nothing() -> None:
    bench = Bench()
    bench.run(text(0, 40), salt=b"one")
    for salt, found in ((b"", 0), (b"other", 0), (b"one", 39)):
        assert bench.cache.lookup(as_bytes(text(0, 40)), salt=salt).num_tokens == found
    bench.run(text(0, 70), salt=b"other")
    bench.run(text(0, 70))
    assert bench.cache.statistics().merged_pages == 0
    assert bench.cache.statistics().held_pages == 2 + 3 + 3


def test_a_hit_may_end_inside_a_page_of_a_running_sequence() -> None:
    bench = Bench()
    bench.run(text(0, 24) + text(100, 20))
    handle = bench.start(text(0, 24) + text(200, 20))
    assert handle.num_tokens == 24
    assert bench.memory.tokens(handle.id) == text(0, 24)


def test_a_hit_may_end_inside_the_tail_of_an_idle_sequence() -> None:
    bench = Bench()
    bench.finish(text(0, 30))
    assert bench.start(text(0, 24) + text(200, 20)).num_tokens == 24


def test_the_last_token_is_always_left_to_compute() -> None:
    bench = Bench()
    bench.finish(text(0, 64))
    assert bench.start(text(0, 64)).num_tokens == 63


def test_a_continued_sequence_keeps_its_id_and_its_cells() -> None:
    bench = Bench()
    first = bench.run(text(0, 50))
    bench.cache.release(first)
    used = bench.memory.num_used
    handle = bench.start(text(0, 50) + text(500, 9))
    assert handle is first
    assert handle.num_tokens == 50
    assert bench.memory.num_used == used


def test_a_shared_prefix_is_counted_once() -> None:
    bench = Bench()
    for start in (100, 200, 300):
        bench.run(text(0, 64) + text(start, 10))
    assert bench.cache.num_held == 2 + 3
    assert bench.memory.num_used == 64 + 30


def test_equal_pages_computed_twice_are_merged() -> None:
    bench = Bench()
    one, two = bench.start(text(0, 40)), bench.start(text(0, 40))
    bench.compute(one, text(0, 40))
    bench.compute(two, text(0, 40))
    assert bench.cache.statistics().merged_pages == 1
    assert bench.memory.num_used == 32 + 8 + 8
    assert bench.memory.tokens(two.id) == text(0, 40)


def test_an_idle_handle_keeps_its_id_only_as_sole_holder_of_a_page() -> None:
    bench = Bench()
    bench.finish(text(0, 64))
    bench.run(text(0, 64) + text(100, 10))
    bench.finish(text(0, 64) + text(100, 5))
    assert bench.cache.statistics().cached_ids == 0


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    bench = Bench(num_pages=6)
    bench.finish(text(0, 32) + text(100, 32))  # old leaf, its first page used again below
    bench.finish(text(500, 64))
    bench.finish(text(0, 32) + text(200, 32))
    bench.run(text(900, 64))  # needs one page more than is free
    assert bench.cache.lookup(as_bytes(text(0, 32) + text(100, 32))).num_tokens == 32
    assert bench.cache.lookup(as_bytes(text(0, 32) + text(200, 32))).num_tokens == 63
    assert bench.cache.lookup(as_bytes(text(500, 64))).num_tokens == 63
    assert bench.cache.statistics().evicted_pages == 1


def test_an_eighth_of_the_pool_is_evicted_at_once() -> None:
    """Cells that are freed together are near each other, and the next tokens are written there."""
    cache = KVCache(FakeMemory(32), PoolLayout(num_pages=32, num_ids=32))
    for number in range(16):
        tokens = as_bytes(text(1000 * number, 2 * PAGE_TOKENS))
        handle = cache.acquire(tokens)
        assert handle is not None
        cache.commit(handle, tokens)
        cache.release(handle)
    assert cache.num_free == 0
    assert cache.acquire(as_bytes(text(50_000, PAGE_TOKENS))) is not None
    assert cache.num_free == 32 // EVICTION_SHARE - 1
    cache.check_integrity()


def test_without_free_ids_the_oldest_idle_sequence_is_evicted() -> None:
    bench = Bench(num_pages=20, num_ids=2)
    bench.finish(text(0, 40))
    bench.finish(text(100, 40))
    bench.run(text(200, 40))
    assert bench.cache.lookup(as_bytes(text(0, 40))).num_tokens == 0
    assert bench.cache.lookup(as_bytes(text(100, 40))).num_tokens == 39
    assert bench.cache.statistics().evicted_pages == 2


def test_a_failed_acquire_changes_nothing() -> None:
    bench = Bench(num_pages=4)
    bench.run(text(0, 64))
    before = bench.cache.statistics()
    assert bench.cache.acquire(as_bytes(text(500, 65))) is None
    assert bench.cache.acquire(as_bytes(text(500, 64)), spare_pages=1) is None
    assert bench.cache.statistics() == before


def test_a_hit_is_never_evicted_to_make_room_for_its_own_sequence() -> None:
    bench = Bench(num_pages=4)
    bench.finish(text(0, 64))
    bench.finish(text(500, 64))
    handle = bench.run(text(0, 64) + text(800, 64))
    assert bench.memory.tokens(handle.id) == text(0, 64) + text(800, 64)


def test_a_failed_step_leaves_no_cells_behind() -> None:
    bench = Bench()
    handle = bench.run(text(0, 40))
    bench.memory.compute(handle.id, 40, text(700, 10))
    assert bench.cache.rollback(handle)
    assert bench.memory.tokens(handle.id) == text(0, 40)


def test_without_sharing_nothing_is_cached() -> None:
    memory = FakeMemory(8)
    cache = KVCache(memory, PoolLayout(8, 2), sharing=False)
    handle = cache.acquire(as_bytes(text(0, 40)))
    assert handle is not None
    memory.compute(handle.id, 0, text(0, 40))
    cache.commit(handle, as_bytes(text(0, 40)))
    cache.check_integrity()
    assert cache.lookup(as_bytes(text(0, 40))).num_tokens == 0
    cache.release(handle)
    cache.check_integrity()
    assert (cache.num_free, memory.num_used) == (8, 0)


SALTS = [b"", b"one", b"other"]
PREFIXES = [text(0, 24), text(0, 24) + text(300, 60), text(0, 24) + text(300, 8) + text(400, 40), text(600, 96)]


class CacheMachine(RuleBasedStateMachine):
    """Sequences start, grow, fail and finish in any order: memory and accounting always agree."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = self.open()
        self.known: dict[KVHandle, list[int]] = {}

    def open(self) -> Bench:
        return Bench(num_pages=12, num_ids=5)

    @rule(
        prefix=st.sampled_from(PREFIXES),
        cut=st.integers(1, 96),
        own=st.integers(0, 50),
        at=st.integers(0, 3),
        salt=st.sampled_from(SALTS),
    )
    def start(self, prefix: list[int], cut: int, own: int, at: int, salt: bytes) -> None:
        tokens = prefix[:cut] + text(1000 * (at + 1), own)
        cache = self.bench.cache
        handle = cache.acquire(as_bytes(tokens), cache.lookup(as_bytes(tokens), salt=salt))
        if handle is not None:
            assert handle.num_tokens < len(tokens)
            assert handle.root.key == salt
            handle.owner = f"owner-{at}"
            self.known[handle] = tokens

    @precondition(lambda self: self.known)
    @rule(data=st.data(), count=st.integers(1, 70), choice=st.integers(0, 1))
    def grow(self, data: st.DataObject, count: int, choice: int) -> None:
        handle = data.draw(st.sampled_from(list(self.known)))
        tokens = self.known[handle]
        wanted = tokens[handle.num_tokens : handle.num_tokens + count] or text(5000 + 100 * choice, count)
        if self.bench.cache.reserve(handle, handle.num_tokens + len(wanted)):
            self.known[handle] = tokens[: handle.num_tokens] + wanted + tokens[handle.num_tokens + len(wanted) :]
            self.bench.memory.compute(handle.id, handle.num_tokens, wanted)
            self.bench.cache.commit(handle, as_bytes(wanted))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(list(self.known)))
        room = min(handle.num_pages * PAGE_TOKENS - handle.num_tokens, 7)
        self.bench.memory.compute(handle.id, handle.num_tokens, text(9000, room))
        assert self.bench.cache.rollback(handle)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(list(self.known)))
        del self.known[handle]
        self.bench.cache.release(handle)

    @invariant()
    def memory_and_accounting_agree(self) -> None:
        cache, memory = self.bench.cache, self.bench.memory
        cache.check_integrity()
        for handle, tokens in self.known.items():
            assert memory.tokens(handle.id) == tokens[: handle.num_tokens]
            assert handle.num_pages >= num_pages_for(len(tokens)) or handle.num_tokens > len(tokens)
        assert memory.num_used <= (cache.num_held + cache.num_cached) * PAGE_TOKENS

    @invariant()
    def the_map_counts_every_page_once(self) -> None:
        cache, shown = self.bench.cache, self.bench.cache.page_map()
        states = Counter(state for state, _ in shown.cells)
        assert states == Counter(shown.counts), "each cell is a page here"
        assert (states["free"], states["cached"]) == (cache.num_free, cache.num_cached)
        assert states["held"] + states["shared"] == cache.num_held
        assert set(shown.owners) == {handle.owner for handle in self.known}
        assert sum(held for held, _ in shown.owners.values()) == states["held"]
        owned = Counter(owner for state, owner in shown.cells if state == "shared")
        assert all(owned[owner] <= shared for owner, (_, shared) in shown.owners.items())

    @invariant()
    def hits_match_the_memory(self) -> None:
        for prefix, salt in product(PREFIXES, SALTS):
            hit = self.bench.cache.lookup(as_bytes(prefix), salt=salt)
            if hit.source is not None:
                assert hit.source.root.key == salt
                assert self.bench.memory.tokens(hit.source.id)[: hit.num_tokens] == prefix[: hit.num_tokens]


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class LaneBench(Bench):
    """A cache on a fake memory with a lane for each sequence."""

    def __init__(self, lane_pages: int = 8, num_ids: int = 4, tier: Tier = NO_TIER) -> None:
        self.memory = FakeLanes(lane_pages)
        layout = LaneLayout(lane_pages, num_ids, keeps_evicted=tier is not NO_TIER)
        self.cache = KVCache(self.memory, layout, tier)


def test_a_prefix_is_copied_into_another_lane() -> None:
    bench = LaneBench()
    one = bench.run(text(0, 80))
    two = bench.start(text(0, 40) + text(500, 20))
    assert (one.id, two.id, two.num_tokens) == (0, 1, 40)
    assert bench.memory.tokens(two.id) == text(0, 40)
    assert bench.cache.statistics().held_pages == 3 + 2


def test_a_first_token_in_common_is_not_worth_a_copy_of_a_long_lane() -> None:
    bench = LaneBench(lane_pages=10)
    bench.finish(text(0, 300))
    one = bench.start([0, *text(500, 20)])
    assert (one.id, one.num_tokens) == (1, 0)
    two = bench.start([0, 1, *text(600, 20)])
    assert (two.id, two.num_tokens) == (2, 2), "computing two tokens takes longer"


def test_a_prefix_is_copied_from_its_shortest_holder() -> None:
    bench = LaneBench()
    bench.run(text(0, 64) + text(100, 150))
    bench.run(text(0, 64) + text(200, 10))
    copied = []
    share = bench.memory.share

    def watch(source: int, target: int, start: int, stop: int) -> bool:
        copied.append(source)
        return share(source, target, start, stop)

    bench.memory.share = watch  # type: ignore[method-assign]
    bench.run(text(0, 64) + text(300, 10))
    assert copied == [1]


def test_a_continued_sequence_stays_in_its_lane_without_a_gap() -> None:
    bench = LaneBench()
    bench.run(text(1000, 40))
    bench.finish(text(0, 50))
    handle = bench.start(text(0, 50) + text(500, 9))
    assert (handle.id, handle.num_tokens) == (1, 50)


def test_running_sequences_are_placed_in_consecutive_lanes() -> None:
    """llama.cpp computes sequences together only if their ids are consecutive."""
    bench = LaneBench(num_ids=8, tier=PageTier(1 << 20))
    handles = [bench.run(text(1000 * number, 40)) for number in range(6)]
    for handle in handles[1:]:
        bench.cache.release(handle)
    again = bench.start(text(5000, 40) + text(500, 9))
    assert (again.id, again.num_tokens) == (1, 40)
    assert bench.cache.statistics().free_ids == 2 + 1
    assert bench.start(text(1000, 40) + text(500, 9)).num_tokens == 40, "the evicted sequence is in the tier"


def test_without_a_tier_a_gap_is_better_than_an_eviction() -> None:
    bench = LaneBench(num_ids=8)
    handles = [bench.run(text(1000 * number, 40)) for number in range(6)]
    for handle in handles[1:]:
        bench.cache.release(handle)
    assert bench.start(text(5000, 40) + text(500, 9)) is handles[5]
    assert bench.start(text(1000, 40) + text(500, 9)) is handles[1]
    assert bench.cache.statistics().evicted_pages == 0


def test_the_cut_part_of_a_lane_is_kept_in_the_tier() -> None:
    bench = LaneBench(num_ids=1, tier=PageTier(1 << 20))
    bench.finish(text(0, 100))
    bench.finish(text(0, 50) + text(500, 20))
    handle = bench.start(text(0, 100) + text(900, 5))
    assert handle.num_tokens == 100
    assert bench.memory.tokens(handle.id) == text(0, 100)
    assert bench.cache.statistics().evicted_pages == 2 + 2


def full_lanes(tier: Tier) -> LaneBench:
    """Two lanes, of which the first was idle for longer. The second has 160 tokens."""
    bench = LaneBench(num_ids=2, tier=tier)
    bench.finish(text(1000, 80))
    bench.finish(text(0, 160))
    return bench


def test_without_a_free_lane_a_sequence_takes_that_of_its_source_if_little_is_cut_off() -> None:
    """So nothing is copied, and the longest idle sequence stays."""
    bench = full_lanes(PageTier(1 << 20))
    handle = bench.start(text(0, 140) + text(500, 9))
    assert (handle.id, handle.num_tokens) == (1, 140)
    bench.cache.release(handle)
    assert bench.start(text(1000, 80) + text(600, 9)).id == 0
    assert bench.start(text(0, 160) + text(700, 9)).num_tokens == 160, "the part that was cut off is in the tier"


def test_a_source_of_which_much_would_be_cut_off_stays() -> None:
    bench = full_lanes(PageTier(1 << 20))
    handle = bench.start(text(0, 100) + text(500, 9))
    assert (handle.id, handle.num_tokens) == (0, 100)
    assert bench.memory.tokens(1) == text(0, 160)


def test_without_a_tier_nothing_is_cut_off_a_sequence_that_was_used_lately() -> None:
    bench = full_lanes(NO_TIER)
    assert bench.start(text(0, 140) + text(500, 9)).id == 0
    assert bench.memory.tokens(1) == text(0, 160)


def test_a_sequence_is_limited_to_its_lane() -> None:
    bench = LaneBench(lane_pages=2)
    assert bench.cache.acquire(as_bytes(text(0, 65))) is None
    handle = bench.run(text(0, 64))
    assert not bench.cache.reserve(handle, 65)


def test_no_sequence_is_admitted_while_all_lanes_run() -> None:
    bench = LaneBench(num_ids=2)
    bench.run(text(0, 10))
    bench.run(text(100, 10))
    assert bench.cache.acquire(as_bytes(text(200, 10))) is None


class LaneMachine(CacheMachine):
    """The same events in the layout lanes."""

    def open(self) -> Bench:
        return LaneBench(lane_pages=8, num_ids=4)


TestLaneMachine = LaneMachine.TestCase
TestLaneMachine.settings = TestCacheMachine.settings
