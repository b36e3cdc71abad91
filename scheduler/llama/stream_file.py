"""A C file that is made while llama.cpp reads it, part by part, so that it is never whole in memory."""

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BUFFER_BYTES: Final = 1 << 18
_WHOLE_BUFFER: Final = 0
"""The C library's _IOFBF."""
_SEEK_CUR: Final = 1
_SEEK_END: Final = 2

_Read = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Seek = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int)


class Part(NamedTuple):
    """Consecutive bytes of a file."""

    size: int
    make: Callable[[], Bytes]
    """Returns the bytes, in an array of any shape."""


def num_bytes(parts: Sequence[Part]) -> int:
    """Returns the size of a file."""
    return sum(part.size for part in parts)


@contextmanager
def opened(parts: Sequence[Part]) -> Iterator[int]:
    """Opens a file of these parts for reading. Returns C's pointer to it, valid in the block.

    Raises OSError if this system has no such files (they are glibc's `fopencookie`), and at the end of the block what
    making a part has raised.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "fopencookie"):
        raise OSError("this system has no files that are made while they are read")
    libc.fopencookie.restype = ctypes.c_void_p
    libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Functions]
    libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.fclose.argtypes = [ctypes.c_void_p]
    reader = _Reader(parts)
    functions = _Functions(read=_Read(reader.read), seek=_Seek(reader.seek))
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)  # as the functions, it must live as long as the file
    file = libc.fopencookie(None, b"rb", functions)
    if not file:
        raise OSError("the C library opens no file")
    try:
        libc.setvbuf(file, buffer, _WHOLE_BUFFER, BUFFER_BYTES)
        yield file
    finally:
        libc.fclose(file)
    if reader.error is not None:
        raise reader.error


class _Functions(ctypes.Structure):
    _fields_ = (("read", _Read), ("write", ctypes.c_void_p), ("seek", _Seek), ("close", ctypes.c_void_p))


class _Reader:
    """Reads the parts. An exception must not leave a function that C calls."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._starts = list(accumulate((part.size for part in parts), initial=0))
        self._position = 0
        self._made: tuple[int, Bytes] | None = None
        """The number and the bytes of the part that was read last."""
        self.error: Exception | None = None

    def read(self, _: Any, target: int, size: int) -> int:
        """Copies at most `size` bytes of a part to an address. Returns their number; 0 at the end, -1 if that fails."""
        try:
            index = bisect_right(self._starts, self._position) - 1
            if index == len(self._parts):
                return 0
            data = self._part(index)[self._position - self._starts[index] :][:size]
            ctypes.memmove(target, data.ctypes.data, len(data))
        except Exception as error:
            self.error = error
            return -1
        self._position += len(data)
        return len(data)

    def _part(self, index: int) -> Bytes:
        if self._made is None or self._made[0] != index:
            self._made = None  # before the next one, so that only one is in memory
            self._made = index, np.ascontiguousarray(self._parts[index].make()).reshape(-1)
        return self._made[1]

    def seek(self, _: Any, offset: Any, whence: int) -> int:
        start = {_SEEK_CUR: self._position, _SEEK_END: self._starts[-1]}.get(whence, 0)
        self._position = start + offset[0]
        offset[0] = self._position
        return 0
