"""The folder of the disk tier: a file per page, a limit in bytes, and any number of processes that use it."""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from xxhash import xxh3_128_digest

from kvcache.memory import Blob

SUFFIX: Final = ".page"
EVICTION_SHARE: Final = 8
"""An eviction reads the ages of all files, so it frees 1/EVICTION_SHARE of the limit at once."""
_UNFINISHED: Final = ".unfinished"
_HEADER: Final = struct.Struct("<8s16s16sQ")
"""Magic (with the format version), digest of the page, checksum of the blob, size of the blob."""
_MAGIC: Final = b"CXPAGE\x00\x02"
_TOTAL: Final = struct.Struct("<q")
_UNKNOWN: Final = -1


class PageFolder:
    """Pages of all versions, each version in its own subfolder. The least recently used pages are deleted first.

    The limit covers all versions and all processes. So a process changes the folder only while it holds the lock of the
    file `lock`, which contains the bytes of all pages. While the folder is being changed, it contains _UNKNOWN instead.
    A process that finds this value knows that another one died meanwhile, and counts again. Reading needs no lock: a
    page gets its name when it is complete, and one that another process has deleted is a miss.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError if the folder cannot be used."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # private: prompts can be recovered from pages
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.num_bytes = 0
        """Bytes of all pages when this process last changed or counted them."""
        self._clean()

    def _clean(self) -> None:
        """Count, and delete the unfinished files of dead processes, unless a live process writes now."""
        self.num_bytes = sum(size for _, size in self.files_by_age())
        with suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                for path in self._folder.glob(f"*/*{_UNFINISHED}"):
                    _unlink(path)
                self._set_total(sum(size for _, size in self.files_by_age()))
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def files_by_age(self) -> list[tuple[Path, int]]:
        """Returns path and size of all pages, least recently used first."""
        found = []
        for path in self._folder.glob(f"*/*{SUFFIX}"):
            with suppress(OSError):  # another process may have deleted it
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def load(self, path: Path, digest: bytes) -> Blob | None:
        """Returns the page, or None if it is missing or damaged. Marks it as used."""
        try:
            content = path.read_bytes()
            magic, name, checksum, size = _HEADER.unpack_from(content)
        except (OSError, struct.error):
            return None
        body = memoryview(content)[_HEADER.size :]
        if (magic, name, size) != (_MAGIC, digest, len(body)) or checksum != _checksum(body):
            return None
        self.mark_used(path)
        return np.frombuffer(body, np.uint8)

    def mark_used(self, path: Path) -> None:
        now = time.time_ns()  # the kernel's own times are too coarse to order pages
        with suppress(OSError):
            os.utime(path, ns=(now, now))

    def save(self, path: Path, digest: bytes, blob: Blob) -> tuple[int, list[Path]]:
        """Writes a page, after deleting others if necessary. Returns its size, 0 if that failed, and what was deleted.

        A page that another process has written meanwhile is not written again.
        """
        size = _HEADER.size + blob.nbytes
        deleted: list[Path] = []
        try:
            with self._locked() as total:
                if path.exists():
                    self.mark_used(path)
                    self._set_total(total)
                    return path.stat().st_size, deleted
                if total + size > self._max_bytes:
                    total, deleted = self._make_room(size)
                if total + size > self._max_bytes or not self._write(path, digest, blob):
                    size = 0
                self._set_total(total + size)
        except OSError:
            return 0, deleted
        return size, deleted

    def delete(self, path: Path) -> None:
        with suppress(OSError), self._locked() as total:
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:  # another process was faster
                size = 0
            self._set_total(total - size)

    def _make_room(self, size: int) -> tuple[int, list[Path]]:
        """Returns the bytes that are left, and the deleted pages."""
        files = self.files_by_age()
        total, deleted = sum(size for _, size in files), []
        for path, freed in files:
            if total + size <= self._max_bytes - self._max_bytes // EVICTION_SHARE:
                break
            _unlink(path)
            total -= freed
            deleted.append(path)
        return total, deleted

    def _write(self, path: Path, digest: bytes, blob: Blob) -> bool:
        unfinished = path.with_suffix(_UNFINISHED)
        body = np.ascontiguousarray(blob).data
        try:
            with unfinished.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, digest, _checksum(body), body.nbytes))
                file.write(body)
            self.mark_used(unfinished)
            unfinished.replace(path)
        except OSError:
            _unlink(unfinished)
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Holds the folder's lock, and yields the bytes of all pages. The caller must set the new total."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if not os.fstat(self._lock).st_nlink:
                raise FileNotFoundError("the folder was deleted")
            content = os.pread(self._lock, _TOTAL.size, 0)
            total = _TOTAL.unpack(content)[0] if len(content) == _TOTAL.size else _UNKNOWN
            if total == _UNKNOWN:
                total = sum(size for _, size in self.files_by_age())
            os.pwrite(self._lock, _TOTAL.pack(_UNKNOWN), 0)
            yield total
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _set_total(self, total: int) -> None:
        os.pwrite(self._lock, _TOTAL.pack(total), 0)
        self.num_bytes = total

    def close(self) -> None:
        os.close(self._lock)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checksum(body: memoryview) -> bytes:
    """Returns a fast checksum against accidental damage. Speed matters: it delays the first token of a long prompt."""
    return xxh3_128_digest(body)
