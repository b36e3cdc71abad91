"""Reads and writes GGUF files with ggml's own functions, which llama-cpp-python does not declare."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import llama_cpp.llama_cpp as lib
import numpy as np

from scheduler.errors import ModelError
from scheduler.llama.stream_file import Bytes, Part

Q4_0: Final = 2
Q4_1: Final = 3
Q8_0: Final = 8
"""ggml's numbers of types."""
BLOCK: Final = 32
"""Weights in a block of each of these types."""
ALIGNMENT: Final = 32
"""Of a tensor's data, in bytes, if a file names no other."""


class Tensor(NamedTuple):
    """The name, the type and the shape of a tensor. `shape[0]` is the length of a row."""

    name: str
    type: int
    shape: tuple[int, ...]

    @property
    def num_columns(self) -> int:
        return self.shape[0]

    @property
    def num_rows(self) -> int:
        return prod(self.shape[1:])


class Place(NamedTuple):
    """Where a file has the data of a tensor, in bytes."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What the header of a GGUF file says."""

    pointer: Any
    """ggml's copy of the header."""
    architecture: str
    is_plain: bool
    """Whether this file has all tensors of its model, in the usual alignment."""
    tensors: Mapping[Tensor, Place]


@contextmanager
def reading(path: Path) -> Iterator[Contents]:
    """Reads a file's header. Raises ModelError if ggml cannot read it."""
    ggml = _ggml()
    pointer = ggml.gguf_init_from_file(str(path).encode(), _ReadParams(no_alloc=True, context=None))
    if not pointer:
        raise ModelError(f"{path} has no header that ggml can read")
    try:
        data_start = ggml.gguf_get_data_offset(pointer)
        tensors = {}
        for index in range(ggml.gguf_get_n_tensors(pointer)):
            shape = tuple(ggml.gguf_get_tensor_ne(pointer, index)[:4])
            name = ggml.gguf_get_tensor_name(pointer, index).decode()
            start = data_start + ggml.gguf_get_tensor_offset(pointer, index)
            tensor = Tensor(name, ggml.gguf_get_tensor_type(pointer, index), shape)
            tensors[tensor] = Place(start, ggml.gguf_get_tensor_size(pointer, index))
        key = ggml.gguf_find_key(pointer, b"general.architecture")
        architecture = ggml.gguf_get_val_str(pointer, key).decode() if key >= 0 else ""
        is_plain = ggml.gguf_find_key(pointer, b"split.count") < 0 and ggml.gguf_get_alignment(pointer) == ALIGNMENT
        yield Contents(pointer, architecture, is_plain, tensors)
    finally:
        ggml.gguf_free(pointer)


def parts_of(
    tensors: Sequence[Tensor],
    make: Callable[[Tensor], Bytes],
    *,
    values_of: Contents | None = None,
    values: Mapping[str, str] | None = None,
) -> list[Part]:
    """Returns the parts of a file with these tensors and with the values of another file or with texts.

    `make` returns the data of a tensor.
    """
    ggml = _ggml()
    size = ggml.ggml_tensor_overhead() * (len(tensors) + 1)
    context = ggml.ggml_init(_InitParams(mem_size=size, mem_buffer=None, no_alloc=True))
    pointer = ggml.gguf_init_empty()
    try:
        if values_of is not None:
            ggml.gguf_set_kv(pointer, values_of.pointer)
        for key, value in (values or {}).items():
            ggml.gguf_set_val_str(pointer, key.encode(), value.encode())
        for tensor in tensors:
            shape = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
            new = ggml.ggml_new_tensor(context, tensor.type, len(tensor.shape), shape)
            ggml.ggml_set_name(new, tensor.name.encode())
            ggml.gguf_add_tensor(pointer, new)
        header = np.empty(ggml.gguf_get_meta_size(pointer), np.uint8)
        ggml.gguf_get_meta_data(pointer, header.ctypes.data)
        parts, alignment = [Part(len(header), lambda: header)], ggml.gguf_get_alignment(pointer)
        for index, tensor in enumerate(tensors):
            size = ggml.gguf_get_tensor_size(pointer, index)
            padding = np.zeros(-size % alignment, np.uint8)
            parts += [Part(size, partial(make, tensor)), Part(len(padding), partial(np.copy, padding))]
        return parts
    finally:
        ggml.gguf_free(pointer)
        ggml.ggml_free(context)


class _ReadParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def _ggml() -> Any:
    """Returns the library, with the types of the functions that this module uses."""
    text, number, size, pointer = ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
    numbers = ctypes.POINTER(ctypes.c_int64)
    types: dict[str, tuple[Any, list[Any]]] = {
        "gguf_init_from_file": (pointer, [text, _ReadParams]),
        "gguf_init_empty": (pointer, []),
        "gguf_free": (None, [pointer]),
        "gguf_get_data_offset": (size, [pointer]),
        "gguf_get_alignment": (size, [pointer]),
        "gguf_find_key": (number, [pointer, text]),
        "gguf_get_val_str": (text, [pointer, number]),
        "gguf_set_val_str": (None, [pointer, text, text]),
        "gguf_set_kv": (None, [pointer, pointer]),
        "gguf_get_n_tensors": (number, [pointer]),
        "gguf_get_tensor_name": (text, [pointer, number]),
        "gguf_get_tensor_type": (ctypes.c_int, [pointer, number]),
        "gguf_get_tensor_ne": (numbers, [pointer, number]),
        "gguf_get_tensor_offset": (size, [pointer, number]),
        "gguf_get_tensor_size": (size, [pointer, number]),
        "gguf_add_tensor": (None, [pointer, pointer]),
        "gguf_get_meta_size": (size, [pointer]),
        "gguf_get_meta_data": (None, [pointer, pointer]),
        "ggml_tensor_overhead": (size, []),
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor": (pointer, [pointer, ctypes.c_int, ctypes.c_int, numbers]),
        "ggml_set_name": (pointer, [pointer, text]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(lib._lib, name)
        function.restype, function.argtypes = result, arguments
    return lib._lib
