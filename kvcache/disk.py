"""The disk tier: one file per page, written and read by a background thread, reused after a restart."""

import logging
import threading
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Final, Protocol

from kvcache.events import NO_LISTENER, Block, Listener, Medium
from kvcache.folder import SUFFIX, PageFolder
from kvcache.memory import Blob

_log = logging.getLogger("cortex.engine")

MAX_WAITING_BYTES: Final = 256 << 20
"""Limit of pages that wait to be written. Further pages are discarded, so that a slow disk cannot fill the memory."""
MAX_WAIT_SECONDS: Final = 0.05


class Disk(Protocol):
    """The part of DiskTier that the tiers of pages and of whole sequences use."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def num_pages(self) -> int: ...

    def digests(self) -> list[bytes]: ...
    def size_of(self, digest: bytes) -> int: ...
    def write(self, digest: bytes, blob: Blob, block: Block | None = None) -> None: ...
    def read(self, digest: bytes, block: Block | None = None) -> None: ...
    def arrivals(self) -> list[tuple[bytes, Blob | None]]: ...
    def wait(self) -> None: ...
    def close(self, seconds: float) -> None: ...


class NoDisk:
    """Keeps nothing."""

    num_bytes = num_pages = 0

    def digests(self) -> list[bytes]:
        return []

    def size_of(self, digest: bytes) -> int:  # noqa: ARG002
        return 0

    def write(self, digest: bytes, blob: Blob, block: Block | None = None) -> None: ...

    def read(self, digest: bytes, block: Block | None = None) -> None: ...

    def arrivals(self) -> list[tuple[bytes, Blob | None]]:
        return []

    def wait(self) -> None: ...

    def close(self, seconds: float) -> None: ...


class DiskTier:
    """The pages of one version (of model, settings and llama.cpp) in a folder; see `kvcache.folder`.

    If a read or a write fails, or if another process has deleted a page, the page is lost and has to be computed again;
    no error is raised.
    """

    def __init__(self, folder: Path, version: str, max_bytes: int, listener: Listener = NO_LISTENER) -> None:
        """Raises OSError if the folder cannot be used.

        A file's name does not contain the tokens of its page. So the `listener` gets a page of an earlier process when
        it is written again or read.
        """
        self._path = folder / version
        self._folder = PageFolder(folder, max_bytes)
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._files = dict(self._folder.files_by_age())
        """Size of each file of all versions that this process knows."""
        self._used: deque[Path] = deque()
        """Files that are to be marked as used."""
        self._listener = listener
        self._reported: set[bytes] = set()
        """Digests of the pages that the listener knows."""
        self._writes: OrderedDict[bytes, tuple[Blob, Block | None]] = OrderedDict()
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
    def num_bytes(self) -> int:
        """Bytes of the pages of all versions and processes."""
        return self._folder.num_bytes

    @property
    def num_pages(self) -> int:
        return len(self._files)

    def digests(self) -> list[bytes]:
        """Returns the digests of this version's pages."""
        with self._changed:
            return [bytes.fromhex(path.stem) for path in self._files if path.parent == self._path]

    def size_of(self, digest: bytes) -> int:
        """Returns the size of the page in bytes, or 0 if the tier does not have it."""
        with self._changed:
            if digest in self._writes:
                return self._writes[digest][0].nbytes
            return self._files.get(self._path_of(digest), 0)

    def write(self, digest: bytes, blob: Blob, block: Block | None = None) -> None:
        """Queue a page to be written. A page that is on the disk already is only marked as used.

        `block`: the page for the listener. None if it is not reported.
        """
        with self._changed:
            path = self._path_of(digest)
            if path in self._files:
                self._used.append(path)
                self._report(block)
                self._changed.notify_all()
            elif len(self._writes) * blob.nbytes < MAX_WAITING_BYTES or self._closing:
                self._writes[digest] = blob, block
                self._changed.notify_all()

    def read(self, digest: bytes, block: Block | None = None) -> None:
        """Queue a page to be read. `arrivals` returns it later. `block`: see `write`."""
        with self._changed:
            if self._path_of(digest) in self._files:
                self._report(block)
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
        if not self._thread.is_alive():
            self._folder.close()

    # -- reports, with the lock held ---------------------------------------------------------------------------------

    def _report(self, block: Block | None) -> None:
        """The page is on the disk."""
        if block is not None and block.digest not in self._reported:
            self._reported.add(block.digest)
            self._listener.stored(Medium.DISK, block)

    def _forget(self, path: Path) -> None:
        """The file is not on the disk any more."""
        self._files.pop(path, None)
        if path.parent == self._path and (digest := bytes.fromhex(path.stem)) in self._reported:
            self._reported.remove(digest)
            self._listener.removed(Medium.DISK, digest)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._reads or self._writes or self._used or self._closing):
                    self._changed.wait()
                digest, write, used = None, None, tuple(self._used)
                self._used.clear()
                if self._reads:
                    digest = self._reads.popleft()
                elif self._writes:
                    digest, write = next(iter(self._writes.items()))
                elif not used:
                    return
            for path in used:
                self._folder.mark_used(path)
            if digest is not None and write is not None:
                self._write(digest, *write)
            elif digest is not None:
                self._read(digest)

    def _loaded(self, path: Path, digest: bytes) -> Blob | None:
        """The page of a file; None if it cannot be read. The engine waits for the page, so this must not fail."""
        try:
            return self._folder.load(path, digest)
        except Exception:  # such as MemoryError
            _log.exception("a page of the disk tier was not read")
            return None

    def _read(self, digest: bytes) -> None:
        path = self._path_of(digest)
        with self._changed:
            waiting = self._writes.get(digest)
        blob = waiting[0] if waiting is not None else self._loaded(path, digest)
        if blob is None:
            self._folder.delete(path)
        with self._changed:
            if blob is None:
                self._forget(path)
            self._arrived.append((digest, blob))
            self._num_awaited -= 1
            self._changed.notify_all()

    def _write(self, digest: bytes, blob: Blob, block: Block | None) -> None:
        path = self._path_of(digest)
        size, deleted = self._folder.save(path, digest, blob)
        with self._changed:
            self._writes.pop(digest, None)  # close() may have cleared the queue
            for other in deleted:
                self._forget(other)
            if size:
                self._files[path] = size
                self._report(block)
            self._changed.notify_all()

    def _path_of(self, digest: bytes) -> Path:
        return self._path / (digest.hex() + SUFFIX)
