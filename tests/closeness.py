"""What counts as the same result, measured where the tests run.

llama.cpp is compiled for the processor it meets, and every processor rounds in its own way. So no test states how far
two results may lie apart. A test measures two distances instead: the *noise*, between the same tokens in batches of
other shapes and in other cells with nothing shared, and a *control*, from what is right to what one wrong token gives.
What is tested must be nearer to the noise than to the control, as a ratio, and the two must lie far apart.

The embedded model quantizes what goes into each product, so that a rounding grows until it looks like a wrong token:
noise 0.10, one wrong token of a hundred 0.12 to 0.20. With the same weights as float16 the noise is 0.004. So tests
that compare logits or embeddings use that file (the fixture `exact_model_path`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.llama.context import Context

Rows = NDArray[np.float32]

CLEAR = 4.0
"""The control must be this many times the noise, so that the limit lies at least twice away from either."""
LEAST_NOISE = 1e-2
"""Of the control: the shapes that the noise is measured in may happen to round alike."""
OTHER_TOKENS = 50
PIECE_TOKENS = 32
STRETCH = 8
"""Rows of an answer that are compared together: a single one may be far more sensitive than the others."""


def distance(some: Rows, others: Rows) -> NDArray[np.float32]:
    """Root mean square of each row's difference, in the mean of each stretch of rows."""
    rows = np.atleast_1d(np.sqrt(((some - others) ** 2).mean(axis=-1)))
    return np.array([stretch.mean() for stretch in np.array_split(rows, -(-len(rows) // STRETCH))])


@dataclass(frozen=True, slots=True)
class Scale:
    """How far results lie apart on this machine that are the same, and that are not."""

    noise: float
    control: float

    def __post_init__(self) -> None:
        assert self.control > CLEAR * self.noise, f"a fault would go unnoticed: {self}"

    @property
    def limit(self) -> float:
        return math.sqrt(max(self.noise, LEAST_NOISE * self.control) * self.control)

    def assert_same(self, some: Rows, others: Rows) -> None:
        """Everywhere."""
        distances = distance(some, others)
        assert (distances <= self.limit).all(), f"{distances} are not all within {self.limit} ({self})"


def scale_of(right: Rows, same: list[Rows], wrong: Rows) -> Scale:
    """From the same rows computed in other shapes, and from rows that a fault has changed."""
    noise = max(float(distance(right, other).max()) for other in same)
    return Scale(noise, float(np.median(distance(right, wrong))))


class Reference:
    """Logits of tokens that are computed afresh, by one sequence alone."""

    def __init__(self, context: Context) -> None:
        """The context must have two ids, room for OTHER_TOKENS more, and an output for each token that is asked for."""
        self._context = context

    def logits(self, tokens: list[int], first: int) -> Rows:
        """Rows for the positions from `first` on."""
        self._clear()
        return self._decode(tokens, 0, len(tokens), first)

    def scale(self, tokens: list[int], first: int, wrong: int) -> Scale:
        """For the rows from `first` on; the control has another token at the position `wrong`."""
        changed = [*tokens[:wrong], tokens[wrong] ^ 1, *tokens[wrong + 1 :]]
        return scale_of(self.logits(tokens, first), [self._in_pieces(tokens, first)], self.logits(changed, first))

    def _in_pieces(self, tokens: list[int], first: int) -> Rows:
        """The same, behind the cells of another sequence."""
        self._clear()
        self._decode([1] * OTHER_TOKENS, 0, OTHER_TOKENS, OTHER_TOKENS, sequence_id=1)
        starts = range(0, len(tokens), PIECE_TOKENS)
        return np.concatenate(
            [self._decode(tokens, start, min(start + PIECE_TOKENS, len(tokens)), first) for start in starts]
        )

    def _clear(self) -> None:
        for sequence_id in (0, 1):
            self._context.remove(sequence_id, 0, -1)

    def _decode(self, tokens: list[int], start: int, stop: int, first: int, sequence_id: int = 0) -> Rows:
        context, length = self._context, stop - start
        context.tokens[:length] = tokens[start:stop]
        context.positions[:length] = np.arange(start, stop)
        context.ids[:length] = sequence_id
        context.outputs[:length] = np.arange(start, stop) >= first
        context.decode(length)
        return context.logits(max(0, stop - max(start, first))).copy()
