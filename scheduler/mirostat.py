"""Mirostat (Basu et al., 2020), which keeps the surprise of a text near a target."""

from typing import Final, NamedTuple

import numpy as np

from scheduler.cuts import best_tokens
from scheduler.softmax import Logits, Tokens, at_least, draw_from, total_of

SAMPLE: Final = 100
"""Number of best tokens from which version 1 estimates the shape of the distribution, as in llama.cpp."""


class Drawn(NamedTuple):
    token: int
    surprise: float
    """In bits, among the tokens that were left."""


def mirostat(weights: Logits, version: int, limit: float, uniform: float) -> Drawn:
    """Draws a token from those that are left if tokens with more surprise than `limit` bits are cut."""
    total = total_of(weights)
    if version == 1:
        kept = best_tokens(weights, _count(weights, total, limit))
    else:
        kept = at_least(weights, total * 2.0 ** -max(limit, -1.0))  # below 0, no token is left either
        if not len(kept):
            kept = np.array([weights.argmax()])
    left = weights[kept].astype(np.float64)
    choice = draw_from(left, uniform)
    return Drawn(int(kept[choice]), -float(np.log2(left[choice] / left.sum())))


def _count(weights: Logits, total: float, limit: float) -> int:
    """Returns how many tokens version 1 keeps, if probabilities follow Zipf's law."""
    size = len(weights)
    sample: Tokens = best_tokens(weights, min(SAMPLE, size))
    top = -np.sort(-weights[sample].astype(np.float64)) / total
    top = top[top > 0]
    if len(top) < 2:
        return 1
    ranks = np.arange(1, len(top))
    steps = np.log((ranks + 1) / ranks)
    exponent = float((steps * np.log(top[:-1] / top[1:])).sum() / (steps**2).sum())
    epsilon = exponent - 1
    if abs(epsilon) < 1e-9 or exponent <= 0:
        return size
    k = (epsilon * 2.0**limit / (1 - size**-epsilon)) ** (1 / exponent)
    return int(min(max(round(k), 1), size))
