"""Decides whether two results are the same, with limits that are measured on the machine that runs the tests.

llama.cpp is compiled for the processor at hand, and processors round differently. So tests do not use a fixed limit for
the distance of two results. They measure two distances instead:
- the *noise*: between results of the same tokens, computed in other batch shapes and other cells with nothing shared;
- the *control*: between the right result and the result with one wrong token.
The limit is the geometric mean of noise and control, and the control must be much larger than the noise.

The embedded model quantizes the inputs of each product, so rounding errors grow until they look like a wrong token: the
noise is 0.10, and one wrong token of a hundred gives 0.12 to 0.20. With the same weights as float16, the noise is
0.004. So tests that compare logits or embeddings use that file (the fixture `exact_model_path`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.llama.context import Context

Rows = NDArray[np.float32]

CLEAR = 4.0
"""The control must be this many times the noise. Then the limit is at least a factor of two from each."""
LEAST_NOISE = 1e-2
"""Lower bound of the noise, relative to the control. The measured shapes may happen to round alike."""
OTHER_TOKENS = 50
PIECE_TOKENS = 32
STRETCH = 8
"""Rows that are compared by their mean, because a single row may be far more sensitive than others."""


def distance(some: Rows, others: Rows) -> NDArray[np.float32]:
    """The mean, over each stretch of rows, of the root mean square of a row's difference."""
    rows = np.atleast_1d(np.sqrt(((some - others) ** 2).mean(axis=-1)))
    return np.array([stretch.mean() for stretch in np.array_split(rows, -(-len(rows) // STRETCH))])


@dataclass(frozen=True, slots=True)
class Scale:
    """The distances of equal results (noise) and of different results (control) on this machine."""

    noise: float
    control: float

    def __post_init__(self) -> None:
        assert self.control > CLEAR * self.noise, f"the control is too close to the noise: {self}"

    @property
    def limit(self) -> float:
        return math.sqrt(max(self.noise, LEAST_NOISE * self.control) * self.control)

    def assert_same(self, some: Rows, others: Rows) -> None:
        """Compares every stretch of rows."""
        distances = distance(some, others)
        assert (distances <= self.limit).all(), f"{distances} are not all within {self.limit} ({self})"


def scale_of(right: Rows, same: list[Rows], wrong: Rows) -> Scale:
    """The scale of the rows `right`, with the same rows in other shapes and with rows that a fault changed."""
    noise = max(float(distance(right, other).max()) for other in same)
    return Scale(noise, float(np.median(distance(right, wrong))))


class Reference:
    """Logits of tokens, computed by one sequence alone without a cache."""

    def __init__(self, context: Context) -> None:
        """The context needs two ids, memory for OTHER_TOKENS more tokens, and an output for each requested row."""
        self._context = context

    def logits(self, tokens: list[int], first: int) -> Rows:
        """The rows of the positions from `first`."""
        self._clear()
        return self._decode(tokens, 0, len(tokens), first)

    def scale(self, tokens: list[int], first: int, wrong: int) -> Scale:
        """The scale of the rows from `first`. The control has another token at the position `wrong`."""
        changed = [*tokens[:wrong], tokens[wrong] ^ 1, *tokens[wrong + 1 :]]
        return scale_of(self.logits(tokens, first), [self._in_pieces(tokens, first)], self.logits(changed, first))

    def _in_pieces(self, tokens: list[int], first: int) -> Rows:
        """The same rows, computed in pieces and in cells after those of another sequence."""
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
