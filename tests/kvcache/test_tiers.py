"""The page tier: evicted pages are loaded from host memory and from the disk, also after a restart."""

from collections.abc import Iterator
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
from kvcache.memory import Blob
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_BYTES, PAGE_TOKENS, KVHandle, digest_of
from tests.kvcache.fakes import FakeLanes, FakeMemory, as_bytes

LARGE = 1 << 20
VERSION = "model"
SECONDS = 120
"""More than any disk needs."""


def text(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


class Tiered:
    """A cache on a fake memory with a host tier and an optional disk tier."""

    def __init__(
        self,
        num_pages: int = 6,
        host_bytes: int = LARGE,
        disk: DiskTier | None = None,
        max_cached: int | None = None,
    ) -> None:
        self.memory: FakeMemory = FakeMemory(num_pages)
        self.tier = PageTier(host_bytes, disk)
        self.cache = KVCache(self.memory, PoolLayout(num_pages, 4, max_cached=max_cached), self.tier)

    def run(self, tokens: list[int], salt: bytes = b"") -> int:
        """Serve a sequence like the scheduler. Returns how many tokens were found instead of computed."""
        while (hit := self.cache.lookup(as_bytes(tokens), salt=salt)).stored.arriving:
            self.cache.wait()
        handle = self.cache.acquire(as_bytes(tokens), hit)
        assert handle is not None
        found = handle.num_tokens
        self.memory.compute(handle.id, found, tokens[found:])
        self.cache.commit(handle, as_bytes(tokens[found:]))
        assert self.memory.tokens(handle.id) == tokens
        self.cache.release(handle)
        self.cache.check_integrity()
        return found


def test_evicted_pages_are_loaded() -> None:
    tiered = Tiered()
    tiered.run(text(0, 150))
    tiered.run(text(1000, 150))
    assert tiered.cache.lookup(as_bytes(text(0, 150))).num_tokens < 150
    assert tiered.run(text(0, 150)) == 149
    assert tiered.cache.statistics().loaded_tokens > 0


def test_the_tier_returns_pages_only_to_sequences_of_their_salt() -> None:
    tiered = Tiered(max_cached=0)
    tiered.run(text(0, 70), salt=b"one")
    assert tiered.run(text(0, 70)) == 0
    assert tiered.run(text(0, 70), salt=b"other") == 0
    assert tiered.run(text(0, 70), salt=b"one") == 69
    assert tiered.tier.statistics().host_pages == 3 * 3


def test_the_tail_of_a_sequence_is_loaded() -> None:
    tiered = Tiered(max_cached=0)
    tiered.run(text(0, 45))
    assert tiered.cache.num_cached == 0
    assert tiered.run(text(0, 45) + text(500, 10)) == 45


def test_a_stored_page_serves_a_sequence_that_shares_its_beginning() -> None:
    tiered = Tiered(max_cached=0)
    tiered.run(text(0, 100))
    assert tiered.run(text(0, 40) + text(500, 30)) == 40


def test_a_tail_that_has_grown_is_kept_once() -> None:
    tiered = Tiered(max_cached=0)
    tiered.run(text(0, 40))
    tiered.run(text(0, 70))
    assert tiered.tier.statistics().host_pages == 3


def test_equal_pages_are_kept_once() -> None:
    tiered = Tiered(max_cached=0)
    for end in (1000, 2000, 3000):
        tiered.run(text(0, 64) + text(end, 32))
    assert tiered.tier.statistics().host_pages == 2 + 3


def test_cached_pages_on_the_device_are_limited() -> None:
    tiered = Tiered(num_pages=16, max_cached=4)
    for start in range(0, 5000, 1000):
        tiered.run(text(start, 64))
        assert tiered.cache.num_cached <= 4


def test_host_memory_is_limited_and_evicts_the_least_recently_used_page() -> None:
    tiered = Tiered(max_cached=0, host_bytes=4 * PAGE_BYTES)
    tiered.run(text(0, 64))
    tiered.run(text(1000, 64))
    tiered.run(text(0, 64))
    tiered.run(text(2000, 64))
    assert tiered.run(text(1000, 64)) == 0
    assert tiered.tier.statistics().host_bytes <= 4 * PAGE_BYTES


def test_a_page_that_cannot_be_loaded_is_computed() -> None:
    tiered = Tiered(max_cached=0)
    tiered.run(text(0, 64))
    tiered.memory.load = lambda *_: False  # type: ignore[method-assign]
    assert tiered.run(text(0, 64)) == 0


# The disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def page_of(seed: int) -> Blob:
    return np.random.default_rng(seed).integers(0, 256, 1000).astype(np.uint8)


def read(disk: DiskTier, digest: bytes) -> Blob | None:
    disk.read(digest)
    while not (arrived := disk.arrivals()):
        disk.wait()
    ((name, blob),) = arrived
    assert name == digest
    return blob


def name(number: int) -> bytes:
    return digest_of(b"", bytes([number]))


def test_pages_are_found_after_a_restart(folder: Path) -> None:
    first = DiskTier(folder, VERSION, LARGE)
    first.write(name(1), page_of(1))
    first.close(SECONDS)
    second = DiskTier(folder, VERSION, LARGE)
    assert second.size_of(name(1)) > 1000
    found = read(second, name(1))
    assert found is not None
    assert (found == page_of(1)).all()
    assert second.size_of(name(2)) == 0
    second.close(SECONDS)


def test_pages_of_another_version_are_not_found(folder: Path) -> None:
    first = DiskTier(folder, VERSION, LARGE)
    first.write(name(1), page_of(1))
    first.close(SECONDS)
    other = DiskTier(folder, "another model", LARGE)
    assert other.size_of(name(1)) == 0
    assert other.num_bytes > 1000, "the limit covers all versions"
    other.close(SECONDS)


@pytest.mark.parametrize("damage", ["shorter", "longer", "flipped", "empty", "renamed"])
def test_a_damaged_page_is_not_found(folder: Path, damage: str) -> None:
    disk = DiskTier(folder, VERSION, LARGE)
    disk.write(name(1), page_of(1))
    disk.close(SECONDS)
    (path,) = folder.glob("*/*.page")
    content = path.read_bytes()
    flipped = bytes([content[-1] ^ 1])
    changed = {"shorter": content[:-1], "longer": content + b"x", "flipped": content[:-1] + flipped, "empty": b""}
    path.write_bytes(changed.get(damage, content))
    if damage == "renamed":
        path = path.rename(path.with_stem(name(1).hex()[::-1]))
    digest = bytes.fromhex(path.stem)
    disk = DiskTier(folder, VERSION, LARGE)
    assert disk.size_of(digest) or damage == "empty"
    assert read(disk, digest) is None
    assert disk.size_of(digest) == 0
    assert not path.exists()
    disk.close(SECONDS)


def test_unfinished_files_of_a_crash_are_removed(folder: Path) -> None:
    DiskTier(folder, VERSION, LARGE).close(SECONDS)
    (folder / VERSION / f"{name(1).hex()}.unfinished").write_bytes(b"half a")
    disk = DiskTier(folder, VERSION, LARGE)
    assert (disk.num_pages, list(folder.glob("*/*"))) == (0, [])
    disk.close(SECONDS)


def test_the_disk_tier_is_limited(folder: Path) -> None:
    disk = DiskTier(folder, VERSION, 5000)
    for number in range(12):
        disk.write(name(number), page_of(number))
    disk.close(SECONDS)
    assert disk.num_bytes <= 5000
    assert sum(path.stat().st_size for path in folder.glob("*/*")) == disk.num_bytes
    assert disk.size_of(name(11))
    assert not disk.size_of(name(0))


def test_an_unwritable_folder_loses_pages_without_an_error(folder: Path) -> None:
    disk = DiskTier(folder, VERSION, LARGE)
    (folder / VERSION).rmdir()
    disk.write(name(1), page_of(1))
    disk.close(SECONDS)
    assert disk.size_of(name(1)) == 0


@pytest.fixture
def restarted(folder: Path) -> Iterator[Tiered]:
    """A cache on a disk tier to which an earlier cache saved 200 tokens."""
    first = Tiered(num_pages=8, disk=DiskTier(folder, VERSION, LARGE))
    first.run(text(0, 200))
    first.cache.close(SECONDS)
    second = Tiered(num_pages=8, disk=DiskTier(folder, VERSION, LARGE))
    yield second
    second.cache.close(SECONDS)


def test_sequences_survive_a_restart(restarted: Tiered) -> None:
    assert restarted.run(text(0, 200)) == 199
    assert restarted.run(text(0, 100) + text(500, 20)) == 100


def test_the_tail_of_a_sequence_survives_a_restart(restarted: Tiered) -> None:
    assert restarted.run(text(0, 200) + text(500, 40)) == 200


def test_a_damaged_tail_is_computed(folder: Path) -> None:
    first = Tiered(disk=DiskTier(folder, VERSION, LARGE))
    first.run(text(0, 40))
    first.cache.close(SECONDS)
    end = folder / VERSION / (digest_of(digest_of(b"", as_bytes(text(0, 32))), b"").hex() + ".page")
    end.write_bytes(end.read_bytes()[:-1])
    second = Tiered(disk=DiskTier(folder, VERSION, LARGE))
    assert second.run(text(0, 60)) == PAGE_TOKENS
    second.cache.close(SECONDS)


def test_a_prefix_larger_than_host_memory_is_read_in_part(folder: Path, restarted: Tiered) -> None:
    small = Tiered(num_pages=8, host_bytes=6 * PAGE_BYTES, disk=DiskTier(folder, VERSION, LARGE))
    assert 0 < small.run(text(0, 200)) <= 3 * PAGE_TOKENS
    small.cache.close(SECONDS)


PREFIXES = [text(0, 24) + text(100, 90), text(0, 24) + text(100, 8) + text(300, 70), text(600, 96)]


class TierMachine(RuleBasedStateMachine):
    """Starts, growth, ends and restarts in any order: hits always contain the tokens that were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.running: dict[KVHandle, list[int]] = {}
        self.directory = TemporaryDirectory()
        self.open()

    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 30 * PAGE_BYTES)
        self.tiered = Tiered(num_pages=10, host_bytes=12 * PAGE_BYTES, disk=disk, max_cached=4)

    @rule(prefix=st.sampled_from(PREFIXES), cut=st.integers(1, 114), own=st.integers(0, 70), at=st.integers(0, 2))
    def start(self, prefix: list[int], cut: int, own: int, at: int) -> None:
        tokens = prefix[:cut] + text(1000 * (at + 1), own)
        while self.tiered.cache.lookup(as_bytes(tokens)).stored.arriving:
            self.tiered.cache.wait()
        handle = self.tiered.cache.acquire(as_bytes(tokens))
        if handle is not None:
            assert handle.num_tokens < len(tokens)
            self.running[handle] = tokens

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 70))
    def grow(self, data: st.DataObject, count: int) -> None:
        handle = data.draw(st.sampled_from(list(self.running)))
        tokens = self.running[handle]
        more = tokens[handle.num_tokens : handle.num_tokens + count] or text(5000 + handle.num_tokens, count)
        if self.tiered.cache.reserve(handle, handle.num_tokens + len(more)):
            self.running[handle] = tokens[: handle.num_tokens] + more + tokens[handle.num_tokens + len(more) :]
            self.tiered.memory.compute(handle.id, handle.num_tokens, more)
            self.tiered.cache.commit(handle, as_bytes(more))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(list(self.running)))
        del self.running[handle]
        self.tiered.cache.release(handle)

    @rule()
    def restart(self) -> None:
        self.running.clear()
        self.tiered.cache.close(SECONDS)
        self.open()

    @invariant()
    def memory_matches_the_known_tokens(self) -> None:
        self.tiered.cache.check_integrity()
        for handle, tokens in self.running.items():
            assert self.tiered.memory.tokens(handle.id) == tokens[: handle.num_tokens]

    def teardown(self) -> None:
        self.tiered.cache.close(SECONDS)
        self.directory.cleanup()


TestTierMachine = TierMachine.TestCase
TestTierMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class TieredLanes(Tiered):
    """A cache with lanes, a host tier and a disk tier."""

    def __init__(self, lane_pages: int, num_ids: int, host_bytes: int, disk: DiskTier) -> None:
        self.memory = FakeLanes(lane_pages)
        self.tier = PageTier(host_bytes, disk)
        self.cache = KVCache(self.memory, LaneLayout(lane_pages, num_ids, keeps_evicted=True), self.tier)


class LaneTierMachine(TierMachine):
    """The same events in the layout lanes."""

    def open(self) -> None:
        disk = DiskTier(Path(self.directory.name), VERSION, 30 * PAGE_BYTES)
        self.tiered = TieredLanes(lane_pages=9, num_ids=3, host_bytes=12 * PAGE_BYTES, disk=disk)


TestLaneTierMachine = LaneTierMachine.TestCase
TestLaneTierMachine.settings = TestTierMachine.settings
