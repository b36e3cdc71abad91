"""The disk tier: one file per page, written and read by a background thread, reused after a restart."""

import os
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from xxhash import xxh3_128_digest

from kvcache.memory import Blob

_SUFFIX: Final = ".page"
_HEADER: Final = struct.Struct("<8s16s16sQ")
"""Magic (with the format version), digest of the page, checksum of the blob, size of the blob."""
_MAGIC: Final = b"CXPAGE\x00\x02"
MAX_WAITING_BYTES: Final = 256 << 20
"""Limit of pages that wait to be written. Further pages are discarded, so that a slow disk cannot fill the memory."""
MAX_WAIT_SECONDS: Final = 0.05


class DiskTier:
    """A folder of pages with a limit in bytes. The least recently used pages are deleted first.

    Each version (of model, settings and llama.cpp) has its own subfolder. The limit covers all versions. A file is
    renamed to its final name when it is complete, and its checksum is verified when it is read. If a read or a write
    fails, the page is lost and has to be computed again; no error is raised.
    """

    def __init__(self, folder: Path, version: str, max_bytes: int) -> None:
        self._folder = folder / version
        self._max_bytes = max_bytes
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # private: prompts can be recovered from pages
        self._files: OrderedDict[Path, int] = OrderedDict(_files_by_age(folder))
        """Size of each file of all versions, least recently used first."""
        self.num_bytes = sum(self._files.values())
        self._writes: OrderedDict[bytes, Blob] = OrderedDict()
        self._reads: deque[bytes] = deque()
        self._arrived: deque[tuple[bytes, Blob | None]] = deque()
        self._num_awaited = 0
        """Number of reads that were requested and have not finished."""
        self._closing = False
        self._changed = threading.Condition()
        """Guards all attributes above."""
        self._thread = threading.Thread(target=self._run, name="disk tier", daemon=True)
        self._thread.start()

    @property
    def num_pages(self) -> int:
        return len(self._files)

    def digests(self) -> list[bytes]:
        """Returns the digests of this version's pages."""
        with self._changed:
            return [bytes.fromhex(path.stem) for path in self._files if path.parent == self._folder]

    def size_of(self, digest: bytes) -> int:
        """Returns the size of the page in bytes, or 0 if the tier does not have it."""
        with self._changed:
            if digest in self._writes:
                return self._writes[digest].nbytes
            return self._files.get(self._path(digest), 0)

    def write(self, digest: bytes, blob: Blob) -> None:
        """Queue a page to be written. A page that is on the disk already is only marked as used."""
        with self._changed:
            path = self._path(digest)
            if path in self._files:
                self._files.move_to_end(path)
            elif len(self._writes) * blob.nbytes < MAX_WAITING_BYTES or self._closing:
                self._writes[digest] = blob
                self._changed.notify_all()

    def read(self, digest: bytes) -> None:
        """Queue a page to be read. `arrivals` returns it later."""
        with self._changed:
            self._reads.append(digest)
            self._num_awaited += 1
            self._changed.notify_all()

    def arrivals(self) -> list[tuple[bytes, Blob | None]]:
        """Returns the pages that were read since the last call, with None for a missing or damaged page."""
        with self._changed:
            arrived = list(self._arrived)
            self._arrived.clear()
            return arrived

    def wait(self) -> None:
        """Waits until all requested pages are read, or MAX_WAIT_SECONDS: a caller may be able to continue with some."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_awaited, MAX_WAIT_SECONDS)

    def close(self, seconds: float) -> None:
        """Write the queued pages in order, for at most about `seconds`, then stop the thread."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._writes and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._writes.clear()
        self._thread.join(max(0.1, deadline - time.monotonic()))

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._reads or self._writes or self._closing):
                    self._changed.wait()
                if self._reads:
                    digest, blob = self._reads.popleft(), None
                elif self._writes:
                    digest, blob = next(iter(self._writes.items()))
                else:
                    return
            if blob is None:
                self._read(digest)
            else:
                self._write(digest, blob)

    def _read(self, digest: bytes) -> None:
        path = self._path(digest)
        with self._changed:
            blob = self._writes.get(digest)
        if blob is None:
            blob = _load(path, digest)
        with self._changed:
            if blob is None:
                self.num_bytes -= self._files.pop(path, 0)
                _unlink(path)
            elif path in self._files:
                self._files.move_to_end(path)
            self._arrived.append((digest, blob))
            self._num_awaited -= 1
            self._changed.notify_all()
        with suppress(OSError):
            os.utime(path)

    def _write(self, digest: bytes, blob: Blob) -> None:
        path = self._path(digest)
        size = _HEADER.size + blob.nbytes
        with self._changed:
            fits = self._make_room(size)
        written = fits and _save(path, digest, blob)
        with self._changed:
            self._writes.pop(digest, None)  # close() may have cleared the queue
            if written:
                self._files[path] = size
                self.num_bytes += size
            self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        while self._files and self.num_bytes + size > self._max_bytes:
            path, freed = self._files.popitem(last=False)
            _unlink(path)
            self.num_bytes -= freed
        return self.num_bytes + size <= self._max_bytes

    def _path(self, digest: bytes) -> Path:
        return self._folder / (digest.hex() + _SUFFIX)


def _files_by_age(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields path and size of the pages of all versions, least recently used first. Deletes unfinished files."""
    found = []
    for path in folder.glob("*/*"):
        if path.suffix == _SUFFIX:
            status = path.stat()
            found.append((status.st_mtime, path, status.st_size))
        else:
            _unlink(path)
    yield from ((path, size) for _, path, size in sorted(found))


def _load(path: Path, digest: bytes) -> Blob | None:
    try:
        content = path.read_bytes()
        magic, name, checksum, size = _HEADER.unpack_from(content)
    except (OSError, struct.error):
        return None
    body = memoryview(content)[_HEADER.size :]
    if (magic, name, size) != (_MAGIC, digest, len(body)) or checksum != _checksum(body):
        return None
    return np.frombuffer(body, np.uint8)


def _save(path: Path, digest: bytes, blob: Blob) -> bool:
    unfinished = path.with_suffix(".unfinished")
    body = np.ascontiguousarray(blob).data
    try:
        with unfinished.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, digest, _checksum(body), body.nbytes))
            file.write(body)
        unfinished.replace(path)
    except OSError:
        _unlink(unfinished)
        return False
    return True


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checksum(body: memoryview) -> bytes:
    """Returns a fast checksum against accidental damage. Speed matters: it delays the first token of a long prompt."""
    return xxh3_128_digest(body)
