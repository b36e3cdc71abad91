"""Weights of tokens from whole rows of logits, and draws from them.

A vocabulary may have 262,144 tokens. A new array for so many costs five times as much as to compute its values, because
the kernel hands out its pages one by one. So whole rows are computed in arrays that are kept.
"""

import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""One row: a logit for each token of the vocabulary."""
Tokens = NDArray[np.intp]

_BLOCK: Final = 256


class _Kept(threading.local):
    """The arrays that one thread keeps, by purpose."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, purpose: str, size: int, kind: type[np.generic]) -> NDArray[Any]:
        array = self._arrays.get(purpose)
        if array is None or len(array) < size:
            array = self._arrays[purpose] = np.empty(size, kind)
        return array[:size]


_kept = _Kept()


def kept_array(purpose: str, size: int) -> Logits:
    """Returns an array of any values. It is valid until this thread asks for the same purpose again."""
    return _kept.array(purpose, size, np.float32)


def weights_of(logits: Logits, best: np.float32, scale: float = 1.0) -> Logits:
    """Returns exp((logits - best) * scale), where `best` is the best logit. Valid until the next call in this thread.

    The weights divided by their sum are the softmax at temperature 1 / scale.
    """
    weights = np.subtract(logits, best, out=kept_array("weights", len(logits)))
    if scale != 1.0:
        np.multiply(weights, np.float32(scale), out=weights)
    return np.exp(weights, out=weights)


def total_of(weights: Logits) -> float:
    """Returns their sum: of each block in single precision, of the blocks in double precision."""
    return float(_block_sums(weights).sum(dtype=np.float64))


def at_least(values: Logits, floor: float) -> Tokens:
    """Returns the positions of the values that reach `floor`, which is rounded to single precision."""
    reaches = _kept.array("reaches", len(values), np.bool_)
    return np.flatnonzero(np.greater_equal(values, np.float32(floor), out=reaches))


def draw_from(weights: NDArray[np.floating[Any]], uniform: float) -> int:
    """Returns the position at which the cumulative weight exceeds `uniform` times the total weight."""
    mass = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(mass, uniform * mass[-1], side="right")), len(weights) - 1)


def draw_from_row(weights: Logits, uniform: float) -> int:
    """Does the same as `draw_from` in two levels: numpy vectorises sums of blocks, but not a cumulative sum."""
    sums = _block_sums(weights)
    mass = np.cumsum(sums, dtype=np.float64)
    share = uniform * mass[-1]
    index = min(int(np.searchsorted(mass, share, side="right")), len(sums) - 1)
    inside = weights[index * _BLOCK : (index + 1) * _BLOCK]
    left = (share - (mass[index - 1] if index else 0.0)) / max(float(sums[index]), 1e-30)
    return index * _BLOCK + draw_from(inside, min(left, 1.0))


def _block_sums(weights: Logits) -> Logits:
    whole = len(weights) - len(weights) % _BLOCK
    sums: Logits = weights[:whole].reshape(-1, _BLOCK).sum(axis=1)
    return sums if whole == len(weights) else np.append(sums, weights[whole:].sum())
