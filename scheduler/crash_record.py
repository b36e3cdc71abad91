"""What an engine computes, in memory that outlives its process.

The API makes a record for each engine and reads it when the engine has ended: the requests in it may be the reason for
a crash. Messages could not report this, because the last ones are lost in a crash.
"""

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence
from typing import Final

EXIT_CRASHED: Final = os.EX_SOFTWARE
"""Exit code of an engine that ends because of an exception. As after a crash signal, a request may be the reason."""
MAX_IDS: Final = 1024
"""More than a step has sequences, and a batch texts. Further ids are left out."""
MAX_REASON: Final = 2048
"""Bytes of the reason."""

_STEP: Final = 0
_GRAMMAR: Final = 8 * (1 + MAX_IDS)
_REASON: Final = 2 * _GRAMMAR
SIZE: Final = _REASON + 8 + MAX_REASON
"""Each of the three fields begins with its length, as an integer of 8 bytes, which is written last."""


def create() -> int:
    """Returns the file descriptor of a new, empty record."""
    if hasattr(os, "memfd_create"):  # on Linux
        fd = os.memfd_create("cortex-crash-record")
        os.ftruncate(fd, SIZE)
        return fd
    with tempfile.TemporaryFile() as file:
        file.write(bytes(SIZE))  # a hole could not be filled on a full disk
        file.flush()
        return os.dup(file.fileno())


class CrashRecord:
    """The requests that an engine computes now, and the reason why it ends.

    The thread of the steps and the thread of the grammars may write at the same time.
    """

    def __init__(self, fd: int = -1) -> None:
        """Opens the record of `create`. Without one, nobody else can read what is written."""
        self._fd = fd
        self._memory = mmap.mmap(fd, SIZE)

    def computing(self, request_ids: Sequence[int]) -> None:
        """From now on a step or a batch of texts computes these requests; none between two steps."""
        self._write_ids(_STEP, request_ids)

    def compiling(self, request_ids: Sequence[int]) -> None:
        """From now on the grammars of these requests are compiled; of none if it is empty."""
        self._write_ids(_GRAMMAR, request_ids)

    def explain(self, reason: str) -> None:
        """Record why the engine is about to end."""
        data = reason.encode(errors="replace")[:MAX_REASON]
        self._memory[_REASON + 8 : _REASON + 8 + len(data)] = data
        struct.pack_into("q", self._memory, _REASON, len(data))

    def capture_stderr(self) -> None:
        """From now on, what this process writes to stderr is its reason to end. The descriptor must still be open."""
        os.dup2(self._fd, 2)
        os.lseek(2, _REASON + 8, os.SEEK_SET)
        struct.pack_into("q", self._memory, _REASON, MAX_REASON)

    @property
    def request_ids(self) -> frozenset[int]:
        """The requests that were being computed, or whose grammars were being compiled."""
        return frozenset(self._read_ids(_STEP) + self._read_ids(_GRAMMAR))

    @property
    def reason(self) -> str:
        """Why the engine ended, in one line; empty if it did not say."""
        length = min(max(0, struct.unpack_from("q", self._memory, _REASON)[0]), MAX_REASON)
        text = self._memory[_REASON + 8 : _REASON + 8 + length].partition(b"\0")[0]
        return " ".join(text.decode(errors="replace").split())

    def close(self) -> None:
        self._memory.close()

    def _write_ids(self, field: int, request_ids: Sequence[int]) -> None:
        count = min(len(request_ids), MAX_IDS)
        struct.pack_into("q", self._memory, field, 0)
        struct.pack_into(f"{count}q", self._memory, field + 8, *request_ids[:count])
        struct.pack_into("q", self._memory, field, count)

    def _read_ids(self, field: int) -> tuple[int, ...]:
        count = min(max(0, struct.unpack_from("q", self._memory, field)[0]), MAX_IDS)  # a crash may corrupt memory
        return struct.unpack_from(f"{count}q", self._memory, field + 8)
