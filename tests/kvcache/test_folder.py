"""The folder of the disk tier is shared by processes: their files, their limit, and what each deletes."""

import fcntl
from pathlib import Path

import numpy as np
import pytest

from kvcache.disk import DiskTier
from kvcache.folder import PageFolder
from kvcache.memory import Blob
from tests.kvcache.test_tiers import LARGE, SECONDS, VERSION, name, page_of, read

OTHER = "another model"
LIMIT = 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_tiers_on_one_folder_share_its_limit(folder: Path) -> None:
    tiers = [DiskTier(folder, version, LIMIT) for version in (VERSION, OTHER)]
    for number in range(12):
        for tier in tiers:
            tier.write(name(number), page_of(number))
    for tier in tiers:
        tier.close(SECONDS)
    assert 0 < num_bytes(folder) <= LIMIT
    again = DiskTier(folder, VERSION, LIMIT)
    assert again.num_bytes == num_bytes(folder)
    again.close(SECONDS)


def test_opening_a_tier_leaves_the_unfinished_files_of_a_process_that_writes(folder: Path) -> None:
    DiskTier(folder, VERSION, LARGE).close(SECONDS)
    unfinished = folder / VERSION / f"{name(1).hex()}.unfinished"
    unfinished.write_bytes(b"half a")
    with (folder / "lock").open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        DiskTier(folder, VERSION, LARGE).close(SECONDS)
        assert unfinished.exists()
    DiskTier(folder, VERSION, LARGE).close(SECONDS)
    assert not unfinished.exists(), "no live process writes it"


def test_tiers_write_the_same_page_once(folder: Path) -> None:
    tiers = [DiskTier(folder, VERSION, LARGE) for _ in range(2)]
    for tier in tiers:
        tier.write(name(1), page_of(1))
    for tier in tiers:
        tier.close(SECONDS)
    assert num_bytes(folder) == tiers[1].num_bytes


def test_a_page_that_another_process_deleted_is_a_miss(folder: Path) -> None:
    first = DiskTier(folder, VERSION, LARGE)
    first.write(name(1), page_of(1))
    first.close(SECONDS)
    second = DiskTier(folder, VERSION, LARGE)
    (path,) = folder.glob("*/*.page")
    path.unlink()
    assert read(second, name(1)) is None
    assert second.size_of(name(1)) == 0
    second.write(name(1), page_of(1))
    second.close(SECONDS)
    assert path.exists()


def test_a_file_that_vanishes_while_the_folder_is_listed_is_ignored(folder: Path) -> None:
    DiskTier(folder, VERSION, LARGE).close(SECONDS)
    (folder / VERSION / f"{name(1).hex()}.page").symlink_to("nothing")  # listed, but without a status
    tier = DiskTier(folder, VERSION, LARGE)
    tier.write(name(2), page_of(2))
    assert np.array_equal(blob_of(tier, name(2)), page_of(2))
    tier.close(SECONDS)
    assert tier.num_pages == 1


def test_the_pages_are_counted_again_if_a_process_died_while_it_changed_the_folder(folder: Path) -> None:
    pages = PageFolder(folder, LIMIT)
    (folder / VERSION).mkdir()
    path = folder / VERSION / f"{name(1).hex()}.page"
    path.write_bytes(bytes(LIMIT))
    with (folder / "lock").open("r+b") as lock:
        lock.write((-1).to_bytes(8, "little", signed=True))
    size, deleted = pages.save(path.with_stem(name(2).hex()), name(2), page_of(2))
    assert (num_bytes(folder), deleted) == (size, [path])
    pages.close()


def test_pages_in_use_are_kept_longest_whichever_process_uses_them(folder: Path) -> None:
    first, second = PageFolder(folder, LIMIT), PageFolder(folder, LIMIT)
    (folder / VERSION).mkdir()
    paths = [folder / VERSION / f"{name(number).hex()}.page" for number in range(40)]
    for number, path in enumerate(paths):
        second.load(paths[0], name(0))
        first.save(path, name(number), page_of(number))
    assert paths[0].exists()
    assert not paths[1].exists()
    first.close()
    second.close()


def test_a_folder_that_was_deleted_loses_pages_without_an_error(folder: Path) -> None:
    tier = DiskTier(folder, VERSION, LARGE)
    (folder / "lock").unlink()
    (folder / VERSION).rmdir()
    folder.rmdir()
    tier.write(name(1), page_of(1))
    tier.close(SECONDS)
    assert not folder.exists()


def blob_of(tier: DiskTier, digest: bytes) -> Blob:
    blob = read(tier, digest)
    assert blob is not None
    return blob


def test_a_page_that_cannot_be_read_is_not_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiskTier(folder, VERSION, LARGE)
    tier.write(name(1), page_of(1))
    tier.close(SECONDS)
    tier = DiskTier(folder, VERSION, LARGE)

    def fail(*_: object) -> Blob:
        raise MemoryError

    monkeypatch.setattr(PageFolder, "load", fail)
    assert read(tier, name(1)) is None
    tier.close(SECONDS)
