"""Checks that a GGUF file is complete, and reads its values.

Its header has the offset of each tensor's data, and so the minimum file size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_U32, _STRING, _ARRAY = 4, 8, 9
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U64 = struct.Struct("<Q")

BLOCKS = {
    0: (1, 4),  # f32
    1: (1, 2),  # f16
    2: (32, 18),  # q4_0
    3: (32, 20),  # q4_1
    6: (32, 22),  # q5_0
    7: (32, 24),  # q5_1
    8: (32, 34),  # q8_0
    9: (32, 36),  # q8_1
    10: (256, 84),  # q2_K
    11: (256, 110),  # q3_K
    12: (256, 144),  # q4_K
    13: (256, 176),  # q5_K
    14: (256, 210),  # q6_K
    15: (256, 292),  # q8_K
    16: (256, 66),  # iq2_xxs
    17: (256, 74),  # iq2_xs
    18: (256, 98),  # iq3_xxs
    19: (256, 50),  # iq1_s
    20: (32, 18),  # iq4_nl
    21: (256, 110),  # iq3_s
    22: (256, 82),  # iq2_s
    23: (256, 136),  # iq4_xs
    24: (1, 1),  # i8
    25: (1, 2),  # i16
    26: (1, 4),  # i32
    27: (1, 8),  # i64
    28: (1, 8),  # f64
    29: (256, 56),  # iq1_m
    30: (1, 2),  # bf16
    34: (256, 54),  # tq1_0
    35: (256, 66),  # tq2_0
    39: (32, 17),  # mxfp4
    40: (64, 36),  # nvfp4
    41: (128, 18),  # q1_0
    42: (64, 18),  # q2_0
}
"""Per ggml type: numbers in a block and bytes of a block (ggml_blck_size, ggml_type_size)."""


class GgufError(Exception):
    """A file that is not a complete GGUF file. The message continues a sentence that starts with the file's name."""


def _malformed() -> GgufError:
    return GgufError("is cut short or damaged: its header cannot be read")


@dataclass(frozen=True, slots=True)
class Values:
    """What the header of a model's first file says."""

    by_key: Mapping[str, str | int | float | bool]
    """All values except arrays, by their keys."""
    num_parameters: int
    """The numbers in the tensors of this file."""


class _Header:
    """A GGUF header, read from front to back."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._offset = 0

    def data_end(self) -> int:
        """The offset of the end of all tensors' data. A tensor of unknown type counts with size 0.

        Raises GgufError if the version cannot be loaded or the header is malformed.
        """
        num_tensors, num_values = self._begin()
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(num_values):
            key, kind = self._string(), self._number("I")
            if key == b"general.alignment" and kind == _U32:
                alignment = self._number("I")
            else:
                self._skip_value(kind)
        if alignment < 1:
            raise _malformed()
        ends = [self._tensor_end() for _ in range(num_tensors)]
        data_start = -(-self._offset // alignment) * alignment
        return data_start + max(ends, default=0)

    def text(self, wanted: str) -> str | None:
        """The value of a key; None if there is no such key or its value is no text.

        Raises GgufError if the version cannot be loaded or the header is malformed.
        """
        _, num_values = self._begin()
        for _ in range(num_values):
            key, kind = self._string(), self._number("I")
            if key == wanted.encode():
                return self._string().decode(errors="replace") if kind == _STRING else None
            self._skip_value(kind)
        return None

    def values(self) -> "Values":
        """All values except arrays, and the number of parameters.

        Raises GgufError if the version cannot be loaded or the header is malformed.
        """
        num_tensors, num_values = self._begin()
        found: dict[str, str | int | float | bool] = {}
        for _ in range(num_values):
            key, kind = self._string().decode(errors="replace"), self._number("I")
            if kind == _STRING:
                found[key] = self._string().decode(errors="replace")
            elif kind in _SCALAR_FORMATS:
                found[key] = self._scalar(_SCALAR_FORMATS[kind])
            else:
                self._skip_value(kind)
        return Values(found, sum(self._tensor()[0] for _ in range(num_tensors)))

    def _begin(self) -> tuple[int, int]:
        """The numbers of tensors and of values."""
        self._skip(4)
        version = self._number("I")
        if version not in _VERSIONS:
            supported = " and ".join(map(str, _VERSIONS))
            raise GgufError(f"is GGUF version {version}; versions {supported} can be loaded")
        return self._number("Q"), self._number("Q")

    def _tensor_end(self) -> int:
        """Reads the next tensor's entry. Returns the end of its data, relative to the start of all data."""
        return self._tensor()[1]

    def _tensor(self) -> tuple[int, int]:
        """Reads the next tensor's entry. Returns its size in numbers, and the end of its data as above."""
        self._string()
        num_dimensions = self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise _malformed()
        size = math.prod(self._number("Q") for _ in range(num_dimensions))
        kind, start = self._number("I"), self._number("Q")
        if kind not in BLOCKS:
            return size, start
        block_size, block_bytes = BLOCKS[kind]
        return size, start + size // block_size * block_bytes

    def _number(self, code: str) -> int:
        return int(self._scalar(code))

    def _scalar(self, code: str) -> int | float | bool:
        start = self._offset
        self._skip(struct.calcsize("<" + code))
        value: int | float | bool = struct.unpack_from("<" + code, self._data, start)[0]
        return value

    def _string(self) -> bytes:
        length = self._number("Q")
        start = self._offset
        self._skip(length)
        return self._data[start : self._offset]

    def _skip(self, num_bytes: int) -> None:
        self._offset += num_bytes
        if self._offset > self._size:
            raise _malformed()

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            self._skip_array(self._number("I"), self._number("Q"))
        elif kind in _SCALAR_FORMATS:
            self._number(_SCALAR_FORMATS[kind])
        else:
            raise _malformed()

    def _skip_array(self, kind: int, length: int) -> None:
        if kind in _SCALAR_FORMATS:
            self._skip(length * struct.calcsize("<" + _SCALAR_FORMATS[kind]))
            return
        if kind != _STRING:
            raise _malformed()
        # A vocabulary has hundreds of thousands of strings, so their lengths are read without a call for each.
        offset, last, data = self._offset, self._size - _U64.size, self._data
        for _ in range(length):
            if offset > last:
                raise _malformed()
            offset += _U64.size + _U64.unpack_from(data, offset)[0]
        self._offset = offset
        self._skip(0)


def check(path: Path) -> None:
    """Raises GgufError unless `path` is a complete GGUF file, OSError if it cannot be read."""
    with _opened(path) as data:
        size, needed = len(data), _Header(data).data_end()
    if size < needed:
        raise GgufError(f"is cut short: it has {size:,} of {needed:,} bytes; download it again")


def chat_template(path: Path) -> str | None:
    """The chat template in a GGUF file; None if it has none.

    Raises GgufError if the header is malformed, OSError if the file cannot be read.
    """
    with _opened(path) as data:
        return _Header(data).text("tokenizer.chat_template")


def values(path: Path) -> Values:
    """The values in a GGUF file. Raises GgufError if the header is malformed, OSError if the file cannot be read."""
    with _opened(path) as data:
        return _Header(data).values()


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise GgufError("is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
