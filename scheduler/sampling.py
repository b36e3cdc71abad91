"""Choosing the next token from a row of logits, exactly, without sorting the vocabulary.

The order of the steps is llama.cpp's: penalties, top_k, top_p, min_p, temperature. All cuts are made on the
distribution at temperature 1, as llama-server makes them. On flat distributions of 49k tokens a native chain with top_p
takes 5 ms a token; here one vectorised comparison leaves a few hundred candidates, and only those are sorted.
"""

from collections import Counter
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import SamplingParams

Logits = NDArray[np.float32]
"""One row: a logit for each token of the vocabulary."""

REPEAT_WINDOW: Final = 64
"""Tokens back that repeat_penalty looks, llama.cpp's default."""
MIN_TEMPERATURE: Final = 1e-6
"""Below this the best token is certain already, and single precision would overflow."""
_TOP_BLOCK: Final = 64
_DRAW_BLOCK: Final = 256


class SamplerState:
    """What sampling needs to know of one sequence. The draw at index i depends on the seed and on i only."""

    __slots__ = ("_counts", "_penalizes", "_recent", "index", "params")

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self.params = params
        self.index = 0
        """Tokens generated so far."""
        self._counts: Counter[int] = Counter()
        """Of the generated tokens, as OpenAI's penalties count."""
        self._recent = prompt[-REPEAT_WINDOW:] if params.repeat_penalty != 1.0 else []
        self._penalizes = (params.frequency_penalty, params.presence_penalty, params.repeat_penalty) != (0.0, 0.0, 1.0)

    def accept(self, token: int) -> None:
        self.index += 1
        if self._penalizes:
            self._counts[token] += 1
            if self.params.repeat_penalty != 1.0:
                self._recent = [*self._recent[-REPEAT_WINDOW + 1 :], token]

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the best logit of the row as it is decides."""
        return self.params.temperature == 0.0 and not self._penalizes and not self.params.ignore_eos

    def adjusted(self, logits: Logits, eog_tokens: NDArray[np.intp]) -> Logits:
        """The row after penalties, and without the tokens that end a generation where these are to be ignored."""
        if not self._penalizes and not self.params.ignore_eos:
            return logits
        logits = logits.copy()
        if self._recent:
            recent = np.unique(np.array(self._recent, dtype=np.intp))
            row = logits[recent]
            logits[recent] = np.where(row > 0, row / self.params.repeat_penalty, row * self.params.repeat_penalty)
        if self._counts and (self.params.frequency_penalty or self.params.presence_penalty):
            tokens = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[tokens] -= counts * self.params.frequency_penalty + self.params.presence_penalty
        if self.params.ignore_eos:
            logits[eog_tokens] = -np.inf
        return logits

    def draw(self) -> float:
        """Uniform in [0, 1), the same for the same seed and index whatever else happened."""
        seed = (self.params.seed & (2**64 - 1)).to_bytes(8, "little") + self.index.to_bytes(8, "little")
        return int.from_bytes(blake2b(seed, digest_size=8).digest(), "little") / 2.0**64


def sample(logits: NDArray[np.float32], states: list[SamplerState], eog_tokens: NDArray[np.intp]) -> list[int]:
    """The next token of each sequence, from its row of `logits` [sequences, vocabulary], which stay as they are."""
    if all(state.is_plain_greedy for state in states):
        best: list[int] = logits.argmax(axis=1).tolist()
        return best
    return [_sample_row(row, state, eog_tokens) for row, state in zip(logits, states, strict=True)]


def _sample_row(logits: Logits, state: SamplerState, eog_tokens: NDArray[np.intp]) -> int:
    params = state.params
    logits = state.adjusted(logits, eog_tokens)
    if params.temperature == 0.0:
        return int(logits.argmax())
    candidates = _candidates(logits, params)
    sharpness = np.float32(1.0 / max(params.temperature, MIN_TEMPERATURE))
    if candidates is None:
        weights = np.exp((logits - logits.max()) * sharpness)
        return _draw_blockwise(weights, state.draw())
    kept = logits[candidates]
    weights = np.exp((kept - kept.max()) * sharpness)
    return int(candidates[_draw(weights, state.draw())])


def _candidates(logits: Logits, params: SamplingParams) -> NDArray[np.intp] | None:
    """The tokens that top_k, top_p and min_p leave, best first; None for all of them."""
    top_k = params.top_k if 0 < params.top_k < len(logits) else 0
    if not top_k and params.top_p >= 1.0 and params.min_p <= 0.0:
        return None
    best = logits.max()
    tokens: NDArray[np.intp]
    if top_k:
        tokens = _best(logits, top_k)
        total = float(np.exp(logits[tokens] - best).sum(dtype=np.float64))
    else:
        probabilities = np.exp(logits - best)
        total = float(probabilities.sum(dtype=np.float64))
        # All tokens less probable than (1 - p) / V have less than 1 - p together: the first p lies among the others.
        floor = max(total * (1.0 - params.top_p) / len(logits), params.min_p)
        tokens = np.flatnonzero(probabilities >= floor)
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    probabilities = np.exp(logits[tokens] - best)
    if params.top_p < 1.0:
        mass = np.cumsum(probabilities, dtype=np.float64)
        tokens = tokens[: int(np.searchsorted(mass, params.top_p * total)) + 1]
    if params.min_p > 0.0:
        tokens = tokens[: max(1, int((probabilities[: len(tokens)] >= params.min_p).sum()))]
    return tokens


def _best(logits: Logits, count: int) -> NDArray[np.intp]:
    """The `count` best tokens, unordered: as many blocks have their maximum at the floor or above it."""
    blocks = logits[: len(logits) - len(logits) % _TOP_BLOCK].reshape(-1, _TOP_BLOCK)
    tokens = np.arange(len(logits))
    if count <= len(blocks):
        floor = np.partition(blocks.max(axis=1), -count)[-count]
        tokens = np.flatnonzero(logits >= floor)
    best: NDArray[np.intp] = tokens[np.argpartition(logits[tokens], -count)[-count:]]
    return best


def _draw(weights: NDArray[np.floating[Any]], uniform: float) -> int:
    """The index at which the running sum of the weights passes the drawn share of it."""
    mass = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(mass, uniform * mass[-1], side="right")), len(weights) - 1)


def _draw_blockwise(weights: Logits, uniform: float) -> int:
    """`_draw` in two levels: sums of blocks are vectorised, a running sum over the vocabulary is not."""
    whole = len(weights) - len(weights) % _DRAW_BLOCK
    sums = np.append(weights[:whole].reshape(-1, _DRAW_BLOCK).sum(axis=1), weights[whole:].sum())
    mass = np.cumsum(sums, dtype=np.float64)
    share = uniform * mass[-1]
    index = min(int(np.searchsorted(mass, share, side="right")), len(sums) - 1)
    inside = weights[index * _DRAW_BLOCK : (index + 1) * _DRAW_BLOCK]
    left = (share - (mass[index - 1] if index else 0.0)) / max(float(sums[index]), 1e-30)
    return index * _DRAW_BLOCK + _draw(inside, min(left, 1.0))
