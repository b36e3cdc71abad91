"""Cuts llama.cpp's saved state of a sequence into pages, and joins pages to a state.

The state of a plain attention cache is regular. It has a head and a record of three int32 per cell (position, number of
ids, id). Then each tensor of K and V follows, with its own head and a row of bytes per cell, in the order of the cells.
With latent attention (MLA) there are only tensors of K. So a token's KV is one row of each tensor, and a page of one
sequence can be inserted into another.

This is an internal format of llama.cpp, which may change. So StateFormat reads it from a state of the same context, and
the caller must prove a round trip before it relies on it. Other kinds of memory raise StateError.
"""

import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS

_RECORD: Final = np.dtype([("position", "<i4"), ("num_ids", "<i4"), ("id", "<i4")])
_SHAPE: Final = struct.Struct("<II")
"""Whether V is transposed, number of layers."""
_TENSOR: Final = struct.Struct("<iQ")
"""Number format and bytes of a row."""
_HEAD: Final = struct.Struct("<IiI")
"""Magic, sequence id, number of streams. Then each stream has its number of cells."""
_COUNT: Final = struct.Struct("<I")


class StateError(Exception):
    """The state has a format that cannot be cut into pages, or pages do not fit together."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    head: bytes
    row_bytes: int
    offset: int
    """Offset of its rows in a page with one token. In a page with n tokens, n times as much."""


class StateFormat:
    """The format of the states of one context."""

    def __init__(self, state: Blob) -> None:
        """Reads the format from a sequence's state. Raises StateError if it is not the expected one."""
        content = state.data
        try:
            self._magic, _, self._num_streams = _HEAD.unpack_from(content)
            records, stop = self._find_records(content)
            if stop > len(content) or (state[records:stop].view(_RECORD)["num_ids"] != 1).any():
                raise StateError("a cell has more than one sequence id")
            num_cells = (stop - records) // _RECORD.itemsize
            is_transposed, self._num_layers = _SHAPE.unpack_from(content, stop)
            if is_transposed:
                raise StateError("V is transposed, which is the format without flash attention")
            self._tensors: list[_Tensor] = []
            self.token_bytes = 0
            offset = stop + _SHAPE.size
            num_after = self._num_streams - 1 - (records - _HEAD.size - _COUNT.size) // _COUNT.size
            end = len(content) - num_after * _COUNT.size  # other streams are empty, so only their counts follow
            while offset < end and len(self._tensors) < 2 * self._num_layers:
                _, row_bytes = _TENSOR.unpack_from(content, offset)
                head = bytes(content[offset : offset + _TENSOR.size])
                self._tensors.append(_Tensor(head, row_bytes, self.token_bytes))
                self.token_bytes += row_bytes
                offset += _TENSOR.size + num_cells * row_bytes
        except struct.error:
            raise StateError("the state is too short") from None
        if offset != end or len(self._tensors) not in (self._num_layers, 2 * self._num_layers):
            raise StateError("the state has an unexpected length")

    def with_streams(self, num_streams: int) -> "StateFormat":
        """Returns the format of another context of the same model: in lanes, each sequence id has its own stream."""
        other = copy.copy(self)
        other._num_streams = num_streams
        return other

    def _find_records(self, content: memoryview) -> tuple[int, int]:
        """Returns the offsets where the cells' records begin and end."""
        for stream in range(self._num_streams):
            offset = _HEAD.size + stream * _COUNT.size
            (num_cells,) = _COUNT.unpack_from(content, offset)
            if num_cells:
                start = offset + _COUNT.size
                return start, start + num_cells * _RECORD.itemsize
        raise StateError("the state is empty")

    def num_bytes(self, num_tokens: int) -> int:
        """Returns the size of a state in bytes."""
        heads = _HEAD.size + self._num_streams * _COUNT.size + _SHAPE.size + len(self._tensors) * _TENSOR.size
        return int(heads + num_tokens * (_RECORD.itemsize + self.token_bytes))

    def cut(self, state: Blob, start: int, stop: int) -> list[Blob]:
        """Returns the pages of the positions [start, stop) of a state; the last one may be shorter.

        Raises StateError if the state does not contain all positions.
        """
        records, end = self._find_records(state.data)
        positions = state[records:end].view(_RECORD)["position"]
        order = np.argsort(positions)
        order = order[start - positions[order[0]] :][: stop - start]
        if len(order) != stop - start or positions[order[0]] != start or positions[order[-1]] != stop - 1:
            raise StateError("positions are missing")
        in_order = (np.diff(order) == 1).all()
        selected = slice(order[0], order[-1] + 1) if in_order else order  # a slice avoids a copy
        num_cells = len(positions)
        sizes = [min(PAGE_TOKENS, stop - first) for first in range(start, stop, PAGE_TOKENS)]
        pages = [np.empty(size * self.token_bytes, np.uint8) for size in sizes]
        offset = end + _SHAPE.size
        for tensor in self._tensors:
            offset += _TENSOR.size
            rows = state[offset : offset + num_cells * tensor.row_bytes].reshape(num_cells, -1)[selected].reshape(-1)
            offset += num_cells * tensor.row_bytes
            for index, (page, size) in enumerate(zip(pages, sizes, strict=True)):
                first = index * PAGE_TOKENS * tensor.row_bytes
                page[tensor.offset * size : (tensor.offset + tensor.row_bytes) * size] = rows[
                    first : first + size * tensor.row_bytes
                ]
        return pages

    def join(self, pages: Sequence[Blob], start: int, stop: int, sequence_id: int, out: Blob) -> Blob:
        """Writes the state of a sequence with exactly these positions into `out`, and returns it as a view of `out`.

        Raises StateError if the sizes of the pages do not match the positions.
        """
        num_tokens = stop - start
        if any(page.nbytes != PAGE_TOKENS * self.token_bytes for page in pages[:-1]):
            raise StateError("a page is not full")
        sizes = [page.nbytes // self.token_bytes for page in pages]
        if not 0 <= sum(sizes) - num_tokens < sizes[-1]:
            raise StateError("the pages do not hold these positions")
        state = out[: self.num_bytes(num_tokens)]
        content = state.data
        _HEAD.pack_into(content, 0, self._magic, sequence_id, self._num_streams)
        offset = _HEAD.size
        for index in range(self._num_streams):
            # llama.cpp loads a sequence into its own stream, independent of the stream in the state.
            _COUNT.pack_into(content, offset, 0 if index else num_tokens)
            offset += _COUNT.size
            if not index:
                records = state[offset : offset + num_tokens * _RECORD.itemsize].view(_RECORD)
                records["position"] = np.arange(start, stop)
                records["num_ids"] = 1
                records["id"] = sequence_id
                offset = self._write_rows(state, offset + records.nbytes, pages, sizes, num_tokens)
        return state

    def _write_rows(
        self, state: Blob, offset: int, pages: Sequence[Blob], sizes: Sequence[int], num_tokens: int
    ) -> int:
        _SHAPE.pack_into(state.data, offset, 0, self._num_layers)
        offset += _SHAPE.size
        starts = [*range(0, num_tokens, PAGE_TOKENS), num_tokens]
        for tensor in self._tensors:
            state[offset : offset + _TENSOR.size] = np.frombuffer(tensor.head, np.uint8)
            offset += _TENSOR.size
            for page, size, (first, end) in zip(pages, sizes, pairwise(starts), strict=True):
                num_bytes = (end - first) * tensor.row_bytes
                begin = tensor.offset * size
                state[offset : offset + num_bytes] = page[begin : begin + num_bytes]
                offset += num_bytes
        return offset
