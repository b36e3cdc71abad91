"""The tier of whole sequences: found by all their tokens in host memory, on the disk, and after a restart."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcache.cache import KVCache
from kvcache.disk import DiskTier
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.memory import Blob
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES, KVHandle
from kvcache.whole import WholeTier, whole_digest
from tests.kvcache.fakes import FakeLanes, FakeMemory, as_bytes
from tests.kvcache.test_tiers import LARGE, SECONDS, VERSION, Tiered, TierMachine, text


class States:
    """Recurrent states: the tokens that each sequence has read. A state can be replaced or removed, but not cut."""

    moves_pages = False

    def __init__(self) -> None:
        self.read: dict[int, list[int]] = {}

    def compute(self, sequence_id: int, tokens: list[int]) -> None:
        self.read.setdefault(sequence_id, []).extend(tokens)

    def intact_from(self, sequence_id: int) -> int:
        return 0

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        raise AssertionError("a state cannot be shared")

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        raise AssertionError("a state cannot be shared")

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        if start == 0 and stop < 0:
            self.read.pop(sequence_id, None)
        return start >= len(self.read.get(sequence_id, ()))

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        assert (start, stop) == (0, len(self.read[sequence_id])), "the state has the expected length"
        return [np.frombuffer(as_bytes(self.read[sequence_id]), np.uint8)]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        (state,) = blobs
        assert (start, stop * TOKEN_BYTES) == (0, state.nbytes)
        self.read[sequence_id] = state.view("<i4").tolist()
        return True


class Whole:
    def __init__(self, host_bytes: int = LARGE, disk: DiskTier | None = None, *, in_lanes: bool = False) -> None:
        self.memory = States()
        self.tier = WholeTier(host_bytes, disk)
        layout: Layout = LaneLayout(8, 4, keeps_evicted=True) if in_lanes else PoolLayout(20, 4)
        self.cache = KVCache(self.memory, layout, self.tier, sharing=False)

    def begin(self, tokens: list[int], salt: bytes = b"") -> KVHandle | None:
        while (hit := self.cache.lookup(as_bytes(tokens), salt=salt)).stored.arriving:
            self.cache.wait()
        return self.cache.acquire(as_bytes(tokens), hit)

    def compute(self, handle: KVHandle, tokens: list[int]) -> None:
        self.memory.compute(handle.id, tokens)
        self.cache.commit(handle, as_bytes(tokens))

    def run(self, tokens: list[int], salt: bytes = b"") -> int:
        """Serve a sequence. Returns how many tokens were found instead of computed."""
        handle = self.begin(tokens, salt)
        assert handle is not None
        found = handle.num_tokens
        self.compute(handle, tokens[found:])
        assert self.memory.read[handle.id] == tokens
        self.cache.release(handle)
        self.cache.check_integrity()
        return found


@pytest.mark.parametrize("in_lanes", [False, True])
def test_a_continued_sequence_is_found(in_lanes: bool) -> None:
    whole = Whole(in_lanes=in_lanes)
    assert whole.run(text(0, 50)) == 0
    assert whole.run(text(0, 51)) == 50
    assert whole.run(text(0, 90)) == 51
    assert whole.run(text(0, 60)) == 51, "the longest stored prefix"
    assert whole.cache.num_free == whole.cache.num_pages
    assert whole.cache.statistics().hit_tokens == 50 + 51 + 51


def test_a_state_is_found_only_with_its_salt() -> None:
    whole = Whole()
    whole.run(text(0, 50), salt=b"one")
    assert whole.run(text(0, 60)) == 0
    assert whole.run(text(0, 60), salt=b"other") == 0
    assert whole.run(text(0, 60), salt=b"one") == 50


def test_a_prompt_is_saved_before_its_answer_is_complete() -> None:
    whole = Whole()
    handle = whole.begin(text(0, 50))
    assert handle is not None
    whole.compute(handle, text(0, 50))
    whole.cache.prompt_done(handle)
    assert whole.run(text(0, 50) + text(500, 20)) == 50, "while the first sequence is still answering"
    whole.compute(handle, text(700, 3))
    whole.cache.release(handle)
    assert whole.run(text(0, 50) + text(700, 5)) == 53


def test_a_part_of_a_stored_sequence_is_no_hit() -> None:
    whole = Whole()
    whole.run(text(0, 50))
    assert whole.run(text(0, 50)) == 0, "the last token must be computed for its logits"
    assert whole.run(text(0, 40) + text(500, 20)) == 0


def test_host_memory_is_limited_and_evicts_the_least_recently_used_sequence() -> None:
    whole = Whole(host_bytes=100 * TOKEN_BYTES)
    whole.run(text(0, 40))
    whole.run(text(1000, 40))
    assert whole.run(text(0, 41)) == 40
    assert whole.tier.statistics().host_bytes <= 100 * TOKEN_BYTES
    assert whole.run(text(1000, 41)) == 0


def test_a_sequence_larger_than_host_memory_is_not_kept() -> None:
    whole = Whole(host_bytes=10 * TOKEN_BYTES)
    whole.run(text(0, 40))
    assert whole.run(text(0, 41)) == 0


def test_sequences_survive_a_restart(tmp_path: Path) -> None:
    first = Whole(disk=DiskTier(tmp_path, VERSION, LARGE))
    first.run(text(0, 50))
    first.run(text(0, 70))
    first.cache.close(SECONDS)
    second = Whole(disk=DiskTier(tmp_path, VERSION, LARGE))
    assert second.run(text(0, 60)) == 50
    assert second.run(text(0, 100)) == 70
    second.cache.close(SECONDS)


def test_a_damaged_file_is_computed(tmp_path: Path) -> None:
    first = Whole(disk=DiskTier(tmp_path, VERSION, LARGE))
    first.run(text(0, 50))
    first.cache.close(SECONDS)
    path = tmp_path / VERSION / (whole_digest(as_bytes(text(0, 50))).hex() + ".page")
    path.write_bytes(path.read_bytes()[:-1])
    second = Whole(disk=DiskTier(tmp_path, VERSION, LARGE))
    assert second.run(text(0, 60)) == 0
    second.cache.close(SECONDS)


def test_after_a_failed_step_nothing_is_saved() -> None:
    whole = Whole()
    handle = whole.begin(text(0, 50))
    assert handle is not None
    whole.compute(handle, text(0, 32))
    whole.memory.compute(handle.id, text(32, 18))  # and then the step failed
    assert not whole.cache.rollback(handle)
    assert handle.num_tokens == 0
    whole.cache.release(handle)
    whole.cache.check_integrity()
    assert whole.cache.num_free == whole.cache.num_pages
    assert whole.tier.statistics().host_pages == 0
    assert whole.run(text(0, 50)) == 0


class WholeMachine(RuleBasedStateMachine):
    """Starts, growth, failed steps, ends and restarts in any order."""

    in_lanes = False

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[KVHandle, list[int]] = {}
        self.directory = TemporaryDirectory()
        self.open()

    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 4000)
        self.whole = Whole(host_bytes=300 * TOKEN_BYTES, disk=disk, in_lanes=self.in_lanes)

    @rule(start=st.sampled_from([0, 1000]), length=st.integers(1, 120), own=st.integers(0, 30))
    def start(self, start: int, length: int, own: int) -> None:
        tokens = text(start, length) + text(9000, own)
        handle = self.whole.begin(tokens)
        if handle is not None:
            assert handle.num_tokens < len(tokens)
            self.running[handle] = tokens

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 70))
    def grow(self, data: st.DataObject, count: int) -> None:
        handle = data.draw(st.sampled_from(list(self.running)))
        tokens = self.running[handle]
        more = tokens[handle.num_tokens : handle.num_tokens + count] or text(5000, count)
        if self.whole.cache.reserve(handle, handle.num_tokens + len(more)):
            self.running[handle] = tokens[: handle.num_tokens] + more + tokens[handle.num_tokens + len(more) :]
            self.whole.compute(handle, more)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_ahead=st.booleans())
    def fail(self, data: st.DataObject, is_ahead: bool) -> None:
        handle = data.draw(st.sampled_from(list(self.running)))
        if is_ahead:
            self.whole.memory.compute(handle.id, [1])
        before = handle.num_tokens
        is_whole = self.whole.cache.rollback(handle)
        assert handle.num_tokens == (before if is_whole else 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(list(self.running)))
        del self.running[handle]
        self.whole.cache.release(handle)

    @rule()
    def restart(self) -> None:
        self.running.clear()
        self.whole.cache.close(SECONDS)
        self.open()

    @invariant()
    def states_match_the_known_tokens(self) -> None:
        cache = self.whole.cache
        cache.check_integrity()
        assert cache.num_cached == 0
        assert cache.num_held == sum(handle.num_pages for handle in self.running)
        for handle, tokens in self.running.items():
            assert self.whole.memory.read.get(handle.id, []) == tokens[: handle.num_tokens]
            assert handle.num_pages * PAGE_TOKENS >= handle.num_tokens

    def teardown(self) -> None:
        self.whole.cache.close(SECONDS)
        self.directory.cleanup()


class WholeLanesMachine(WholeMachine):
    in_lanes = True


TestWholeMachine = WholeMachine.TestCase
TestWholeMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestWholeLanesMachine = WholeLanesMachine.TestCase
TestWholeLanesMachine.settings = TestWholeMachine.settings


# Models that share cells, but whose states cannot be cut


class WholeCells(FakeMemory):
    """Cells of a sequence that can only be saved as a whole, and loaded into an empty sequence."""

    moves_pages = False

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return whole(self, sequence_id, start, stop)


class WholeLanes(FakeLanes):
    """The same rules for lanes."""

    moves_pages = False

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        return whole(self, sequence_id, start, stop)


def whole(memory: FakeMemory, sequence_id: int, start: int, stop: int) -> list[Blob]:
    tokens = memory.tokens(sequence_id)
    assert (start, stop) == (0, len(tokens)), "the state has the expected length"
    return [np.frombuffer(as_bytes(tokens), np.uint8)]


class Shared(Tiered):
    """A cache that shares pages on the device, with a tier of whole sequences."""

    def __init__(self, num_pages: int = 10, host_bytes: int = LARGE, disk: DiskTier | None = None) -> None:
        self.memory = WholeCells(num_pages)
        self.whole = WholeTier(host_bytes, disk)
        self.cache = KVCache(self.memory, PoolLayout(num_pages, 4), self.whole)


class SharedLanes(Tiered):
    def __init__(self, lane_pages: int, num_ids: int, host_bytes: int, disk: DiskTier) -> None:
        self.memory = WholeLanes(lane_pages)
        layout = LaneLayout(lane_pages, num_ids, keeps_evicted=True)
        self.cache = KVCache(self.memory, layout, WholeTier(host_bytes, disk))


def test_an_evicted_sequence_is_loaded_whole_and_merged_with_resident_pages() -> None:
    shared = Shared()
    shared.run(text(0, 150))
    shared.run(text(0, 64) + text(1000, 200))
    assert shared.whole.statistics().host_pages == 1
    assert shared.run(text(0, 155)) == 150
    assert shared.cache.statistics().merged_pages >= 2
    assert shared.cache.statistics().loaded_tokens == 150


def test_resident_tokens_are_not_loaded() -> None:
    shared = Shared()
    shared.run(text(0, 150))
    assert shared.run(text(0, 150) + text(500, 10)) == 150
    assert shared.cache.statistics().loaded_tokens == 0


class SharedMachine(TierMachine):
    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 6000)
        self.tiered = Shared(num_pages=10, host_bytes=400 * TOKEN_BYTES, disk=disk)


class SharedLanesMachine(TierMachine):
    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 6000)
        self.tiered = SharedLanes(lane_pages=9, num_ids=3, host_bytes=400 * TOKEN_BYTES, disk=disk)


TestSharedMachine = SharedMachine.TestCase
TestSharedMachine.settings = TestWholeMachine.settings
TestSharedLanesMachine = SharedLanesMachine.TestCase
TestSharedLanesMachine.settings = TestWholeMachine.settings
