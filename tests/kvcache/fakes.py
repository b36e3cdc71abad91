"""Fake KV memories of Python cells, with the rules of llama.cpp's two layouts: a pool, and a lane for each sequence."""

import itertools
from collections.abc import Sequence

import numpy as np

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS, TOKEN_BYTES


def as_bytes(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


class FakeMemory:
    """Cells by sequence id and position. A cell is a unique number and the token that was computed into it."""

    moves_pages = True

    def __init__(self, num_pages: int) -> None:
        self.capacity = num_pages * PAGE_TOKENS
        self.cells: dict[int, dict[int, tuple[int, int]]] = {}
        self._numbers = itertools.count()

    def compute(self, sequence_id: int, start: int, tokens: list[int]) -> None:
        held = self.cells.setdefault(sequence_id, {})
        assert start == len(held), "llama.cpp accepts a sequence's tokens only at consecutive positions"
        for position, token in enumerate(tokens, start):
            held[position] = (next(self._numbers), token)
        assert self.num_used <= self.capacity, "there are enough cells if there are enough pages"

    def intact_from(self, sequence_id: int) -> int:
        return 0

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        for position in range(start, stop):
            cell = self.cells[source][position]
            assert self.cells.setdefault(target, {}).setdefault(position, cell) == cell, "one cell per position"
        return True

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        for position in range(start, stop):
            assert self.cells[target][position][1] == self.cells[source][position][1], "equal tokens"
            self.cells[target][position] = self.cells[source][position]

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        held = self.cells.get(sequence_id, {})
        for position in [p for p in held if p >= start and (stop < 0 or p < stop)]:
            del held[position]
        return True

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        assert start % PAGE_TOKENS == 0
        tokens = self.tokens(sequence_id)[start:stop]
        assert len(tokens) == stop - start, "only existing positions can be saved"
        pages = [tokens[first : first + PAGE_TOKENS] for first in range(0, len(tokens), PAGE_TOKENS)]
        return [np.frombuffer(as_bytes(page), np.uint8) for page in pages]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        tokens = np.concatenate(list(blobs)).view("<i4").tolist()
        assert 0 <= len(tokens) - (stop - start) < PAGE_TOKENS, "the pages match the positions"
        self.compute(sequence_id, start, tokens[: stop - start])
        return True

    def tokens(self, sequence_id: int) -> list[int]:
        held = self.cells.get(sequence_id, {})
        assert sorted(held) == list(range(len(held))), "a sequence has no holes"
        return [held[position][1] for position in range(len(held))]

    @property
    def num_used(self) -> int:
        return len({number for held in self.cells.values() for number, _ in held.values()})


class FakeLanes(FakeMemory):
    """Each sequence id has its own cells. `share` copies into an empty lane."""

    def __init__(self, lane_pages: int) -> None:
        super().__init__(0)
        self.lane_tokens = lane_pages * PAGE_TOKENS

    def compute(self, sequence_id: int, start: int, tokens: list[int]) -> None:
        assert start + len(tokens) <= self.lane_tokens, "the tokens fit into the lane"
        self.capacity += len(tokens)
        super().compute(sequence_id, start, tokens)

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        assert start == 0, "share starts at position 0"
        assert not self.cells.get(target), "the target lane is empty"
        self.compute(target, 0, self.tokens(source)[:stop])
        return True

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        raise AssertionError("lanes share no cells")
