"""How many files and bytes each owner and all owners have, and how many they may have."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from api.storage.errors import BusyError, QuotaError


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be stored. Unfinished uploads count, too."""

    owner_files: int = 1_000
    owner_bytes: int = 8 * 1024**3
    all_files: int = 10_000
    all_bytes: int = 32 * 1024**3
    owner_uploads: int = 8
    """At once."""
    all_uploads: int = 32


class Usage:
    """What is stored. All threads may use it."""

    def __init__(self, quota: Quota, stored: Iterable[tuple[str, int, int]]) -> None:
        """`stored`: owners with their numbers of files and of bytes."""
        self._quota = quota
        self._lock = threading.Lock()
        self._files: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()
        self._num_files = self._num_bytes = 0
        for owner, num_files, num_bytes in stored:
            self._change(owner, num_files, num_bytes)

    def begin(self, owner: str, *, is_bounded: bool) -> None:
        """Count a file that will be written. With `is_bounded`, raises QuotaError or BusyError if it is too many."""
        with self._lock:
            if is_bounded:
                quota = self._quota
                if self._uploads[owner] >= quota.owner_uploads or self._uploads.total() >= quota.all_uploads:
                    raise BusyError("Too many files are being uploaded. Try again shortly.")
                self._check(owner, 1, 0)
            self._uploads[owner] += is_bounded
            self._change(owner, 1, 0)

    def grow(self, owner: str, num_bytes: int, *, is_bounded: bool) -> None:
        """Count bytes that will be written. With `is_bounded`, raises QuotaError if there are too many."""
        with self._lock:
            if is_bounded:
                self._check(owner, 0, num_bytes)
            self._change(owner, 0, num_bytes)

    def end(self, owner: str, *, is_bounded: bool) -> None:
        """A file that `begin` counted is not being written any more."""
        with self._lock:
            self._uploads[owner] -= is_bounded
            if not self._uploads[owner]:
                del self._uploads[owner]

    def remove(self, owner: str, num_bytes: int) -> None:
        """A file is gone."""
        with self._lock:
            self._change(owner, -1, -num_bytes)

    def _check(self, owner: str, num_files: int, num_bytes: int) -> None:
        quota = self._quota
        if num_files and self._files[owner] + num_files > quota.owner_files:
            raise QuotaError(f"You have {self._files[owner]} files, and may have {quota.owner_files}. Delete some.")
        if num_files and self._num_files + num_files > quota.all_files:
            raise QuotaError(f"The server may keep {quota.all_files} files, and has no room for one more.")
        if num_bytes and self._bytes[owner] + num_bytes > quota.owner_bytes:
            raise QuotaError(f"Your files may have {quota.owner_bytes} bytes together. Delete some.")
        if num_bytes and self._num_bytes + num_bytes > quota.all_bytes:
            raise QuotaError(
                f"The server may keep files of {quota.all_bytes} bytes together, and has no room for more."
            )

    def _change(self, owner: str, num_files: int, num_bytes: int) -> None:
        self._num_files += num_files
        self._num_bytes += num_bytes
        self._files[owner] += num_files
        self._bytes[owner] += num_bytes
        if not self._files[owner]:
            del self._files[owner], self._bytes[owner]
