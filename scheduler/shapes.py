"""Sizes of the KV memory, and which size the present sequences need.

A sequence needs room for its known tokens and for a third more. Not for `max_tokens`, which is usually all the context.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from kvcache.tree import PAGE_TOKENS

ROOM: Final = 3
"""A sequence gets room for 1/ROOM more tokens than it has. So it needs a longer lane when 3/4 of its lane are used."""
START_LANES: Final = 2
START_TOKENS: Final = 2048
"""What the memory starts with if the user set nothing: two lanes of this length, or a pool for two such sequences."""
MIN_LANE: Final = 1024
"""Tokens of the shortest lane. 32 such lanes are open in half of the time of 32 lanes of 2,048 tokens. In shorter ones,
a conversation has no room for some turns, so that the memory would grow twice."""
CELLS: Final = 256
"""llama.cpp rounds the length of a lane, and the size of a pool, up to a multiple of this."""


MAX_SEQUENCE_IDS: Final = 256
"""llama_max_parallel_sequences."""


class Shape(NamedTuple):
    """A size of the KV memory."""

    ids: int
    """Sequence ids. With lanes, each has its own cells."""
    tokens: int
    """Tokens of all sequences together."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What the present sequences need."""

    num_seqs: int = 0
    """Running and waiting ones."""
    longest: int = 0
    """Tokens of the one that needs most room."""
    tokens: int = 0
    """Tokens of all of them together, with shared ones of running sequences counted once."""


class Shapes(Protocol):
    """The shapes of one layout."""

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one shape."""

    def wanted(self, demand: Demand) -> Shape:
        """Returns the smallest shape that suits the demand, within the limits of the layout."""

    def join(self, one: Shape, other: Shape) -> Shape:
        """Returns the smallest shape that has what each of the two has, within the limits of the layout."""

    def enlarged(self, shape: Shape) -> Shape:
        """Returns the shape, with at least as many tokens as at the start."""

    def covers(self, shape: Shape, other: Shape) -> bool:
        """Whether `shape` has all that `other` has."""

    def smaller(self, shape: Shape, num_tokens: int) -> Shape | None:
        """Returns the shape with at most `num_tokens` tokens. None if it would be smaller than that of the start.

        A context's largest batch depends on its size, so no context is smaller.
        """


@dataclass(frozen=True, slots=True)
class LaneShapes:
    """Lanes are all as long as the longest sequence needs. There are as many as `max_tokens` allows."""

    start: Shape
    max_seqs: int
    max_lane: int
    """Tokens of the longest lane: a whole context."""
    max_tokens: int
    min_lane: int = 0
    """Tokens of the shortest lane; 0 for that of the start."""

    @property
    def is_fixed(self) -> bool:
        return self.start.tokens == self.max_tokens

    def wanted(self, demand: Demand) -> Shape:
        lane = _doubled(self.min_lane or _lane(self.start), demand.longest, self.max_lane)
        return self._of(_doubled(self.start.ids, demand.num_seqs + 1, self.max_seqs), lane)

    def join(self, one: Shape, other: Shape) -> Shape:
        return self._of(max(one.ids, other.ids), max(_lane(one), _lane(other)))

    def _of(self, ids: int, lane: int) -> Shape:
        ids = max(1, min(ids, self.max_tokens // lane))
        return Shape(ids, ids * lane)

    def enlarged(self, shape: Shape) -> Shape:
        if shape.tokens >= self.start.tokens:
            return shape
        return self._of(shape.ids, min(whole_cells(-(-self.start.tokens // shape.ids)), self.max_lane))

    def covers(self, shape: Shape, other: Shape) -> bool:
        return shape.ids >= other.ids and _lane(shape) >= _lane(other)

    def smaller(self, shape: Shape, num_tokens: int) -> Shape | None:
        ids = min(shape.ids, num_tokens // _lane(shape))
        return Shape(ids, ids * _lane(shape)) if ids * _lane(shape) >= self.start.tokens else None


@dataclass(frozen=True, slots=True)
class PoolShapes:
    """A pool holds the tokens of all sequences. Ids cost memory only if each has a recurrent state."""

    start: Shape
    max_seqs: int
    """Ids at most, if they cost memory. Otherwise `start` has as many as are possible."""
    max_tokens: int

    @property
    def is_fixed(self) -> bool:
        return self.start.tokens == self.max_tokens and self.start.ids >= self.max_seqs

    def wanted(self, demand: Demand) -> Shape:
        ids = _doubled(self.start.ids, demand.num_seqs + 1, max(self.start.ids, self.max_seqs))
        tokens = max(demand.longest, demand.tokens + demand.tokens // ROOM)
        return Shape(ids, _doubled(self.start.tokens, tokens, self.max_tokens))

    def join(self, one: Shape, other: Shape) -> Shape:
        return Shape(max(one.ids, other.ids), max(one.tokens, other.tokens))

    def enlarged(self, shape: Shape) -> Shape:
        return shape

    def covers(self, shape: Shape, other: Shape) -> bool:
        return shape.ids >= other.ids and shape.tokens >= other.tokens

    def smaller(self, shape: Shape, num_tokens: int) -> Shape | None:
        tokens = min(shape.tokens, num_tokens // CELLS * CELLS)
        return Shape(shape.ids, tokens) if tokens >= self.start.tokens else None


def room_for(num_known: int, max_known: int) -> int:
    """Returns the tokens for which a sequence needs room now. `max_known`: it will never have more."""
    return min(max_known, num_known + num_known // ROOM)


def whole_cells(num_tokens: int) -> int:
    """Rounds up to 256 cells like llama.cpp, so that all cells are used."""
    return -(-num_tokens // CELLS) * CELLS


def whole_pages(num_tokens: int) -> int:
    """Rounds a pool up to 256 cells like llama.cpp. Rounds less than 256 up to whole pages."""
    return whole_cells(num_tokens) if num_tokens >= CELLS else -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS


def _lane(shape: Shape) -> int:
    return shape.tokens // shape.ids


def _doubled(size: int, needed: int, limit: int) -> int:
    while size < min(needed, limit):
        size *= 2
    return min(size, limit)
