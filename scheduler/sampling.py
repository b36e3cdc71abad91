"""Choosing the next token from a row of logits, exactly, without sorting the vocabulary.

The order of the steps is llama.cpp's: logit bias, penalties, DRY, top_n_sigma, top_k, typical_p, top_p, min_p, XTC,
temperature. All cuts are made on the distribution at temperature 1, as llama-server makes them. On flat distributions
of 49k tokens a native chain with top_p takes 5 ms a token; here one vectorised comparison leaves a few hundred
candidates, and only those are sorted.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scheduler.history import History
from scheduler.messages import SamplingParams

Logits = NDArray[np.float32]
"""One row: a logit for each token of the vocabulary."""
Tokens = NDArray[np.intp]
Mask = NDArray[np.int32]
"""Packed bits of a grammar: bit i % 32 of word i // 32 says whether token i may come next."""

MIN_TEMPERATURE: Final = 1e-6
"""Below this the best token is certain already, and single precision would overflow."""
MIROSTAT_SAMPLE: Final = 100
"""Tokens from which Mirostat 1 estimates how the distribution falls off, as in llama.cpp."""
_TOP_BLOCK: Final = 64
_DRAW_BLOCK: Final = 256
_SORTABLE: Final = 4096
"""Candidates up to this many are sorted at once; of more, only the bin in which the boundary lies."""
_BINS_PER_NAT: Final = 64
_ENDLESS: Final = 128.0
"""Nats: exp(-128) is 0 in single precision."""
_MAX_BIN: Final = int(_ENDLESS) * _BINS_PER_NAT

_TOKEN_DRAW, _XTC_DRAW = 0, 1


class SamplerState:
    """What sampling needs to know of one sequence. The draws at index i depend on the seed and on i only."""

    __slots__ = ("_bias", "_changes_logits", "_history", "_mu", "index", "params")

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self.params = params
        self.index = 0
        """Tokens generated so far."""
        self._history = History(params, prompt) if History.is_needed(params) else None
        self._bias: tuple[Tokens, Logits] | None = None
        if params.logit_bias:
            tokens, values = zip(*params.logit_bias, strict=True)
            self._bias = np.array(tokens, np.intp), np.array(values, np.float32)
        self._changes_logits = self._history is not None or self._bias is not None
        self._mu = 2 * params.mirostat_tau
        """Mirostat's: the surprise in bits above which tokens are cut off."""

    def accept(self, token: int) -> None:
        self.index += 1
        if self._history is not None:
            self._history.append(token)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the best logit of the row as it is decides."""
        params = self.params
        picks_best = params.temperature == 0.0 and params.typical_p >= 1.0 and not params.xtc_probability
        return picks_best and not self._changes_logits and not self._hides_eog

    def limit(self, top_k: int) -> None:
        """Choose from so many of the best tokens at most, where nothing but top_k cares for the others."""
        if self._reads_best_only:
            self.params = replace(self.params, top_k=min(self.params.top_k or top_k, top_k))

    def best_suffice(self, count: int) -> bool:
        """Whether so many of the best tokens, besides those that end, tell all that there is to know of a row."""
        return self._reads_best_only and (self.is_plain_greedy or 0 < self.params.top_k <= count)

    @property
    def _reads_best_only(self) -> bool:
        return not (self._changes_logits or self.params.mirostat or self.params.top_n_sigma > 0.0)

    @property
    def _hides_eog(self) -> bool:
        return self.params.ignore_eos or self.index < self.params.min_tokens

    def adjusted(self, logits: Logits, eog_tokens: Tokens, mask: Mask | None = None) -> Logits:
        """The row after bias, penalties and the grammar's mask, without tokens that may not end the generation yet."""
        if not self._changes_logits and not self._hides_eog and mask is None:
            return logits
        logits = logits.copy()
        if self._bias is not None:
            np.add.at(logits, *self._bias)
        if self._history is not None:
            self._history.penalize(logits)
        if mask is not None:
            allowed = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(np.bool_)
            if not allowed.any():  # the vocabulary cannot write what must follow, as the grammar will say of any token
                return logits
            if self._hides_eog and allowed.sum() > allowed[eog_tokens].sum():  # else there is nothing but an end
                allowed[eog_tokens] = False
            logits[~allowed] = -np.inf
        elif self._hides_eog:
            logits[eog_tokens] = -np.inf
        return logits

    def draw(self, stream: int = _TOKEN_DRAW) -> float:
        """Uniform in [0, 1), the same for the same seed, index and stream whatever else happened."""
        seed = (self.params.seed & (2**64 - 1)).to_bytes(8, "little") + self.index.to_bytes(8, "little")
        digest = blake2b(seed, digest_size=8, salt=stream.to_bytes(1, "little") if stream else b"").digest()
        return int.from_bytes(digest, "little") / 2.0**64

    def mirostat(self, logits: Logits) -> int:
        """The next token by Mirostat (Basu et al., 2020), which keeps the surprise of the text near a target."""
        params = self.params
        weights = np.exp((logits - logits.max()) * np.float32(1.0 / max(params.temperature, MIN_TEMPERATURE)))
        probabilities = weights / weights.sum(dtype=np.float64)
        if params.mirostat == 1:
            kept = _best(probabilities.astype(np.float32), _mirostat_top_k(probabilities, self._mu))
        else:
            with np.errstate(divide="ignore"):
                kept = np.flatnonzero(-np.log2(probabilities) <= self._mu)
            if not len(kept):
                kept = np.array([int(probabilities.argmax())])
        left = probabilities[kept]
        choice = _draw(left, self.draw())
        self._mu -= params.mirostat_eta * (-float(np.log2(left[choice] / left.sum())) - params.mirostat_tau)
        return int(kept[choice])


def sample(
    logits: NDArray[np.float32],
    states: Sequence[SamplerState],
    eog_tokens: Tokens,
    masks: Sequence[Mask | None] = (),
) -> list[int]:
    """The next token of each sequence, from its row of `logits` [sequences, vocabulary], which stay as they are.

    `masks` are of the sequences that have a grammar, None for the others; empty if none has.
    """
    if not masks and all(state.is_plain_greedy for state in states):
        best: list[int] = logits.argmax(axis=1).tolist()
        return best
    masks = masks or [None] * len(states)
    return [_sample_row(row, state, eog_tokens, mask) for row, state, mask in zip(logits, states, masks, strict=True)]


def sample_best(tokens: Tokens, logits: Logits, state: SamplerState, eog_tokens: Tokens) -> int:
    """The next token of a sequence from the best tokens of its row, in any order, and their logits."""
    order = np.argsort(-logits, kind="stable")
    ends = np.flatnonzero(np.isin(tokens[order], eog_tokens))
    return int(tokens[order[_sample_row(logits[order], state, ends, None)]])


def _sample_row(logits: Logits, state: SamplerState, eog_tokens: Tokens, mask: Mask | None) -> int:
    params = state.params
    logits = state.adjusted(logits, eog_tokens, mask)
    if params.mirostat and params.temperature > 0.0:
        return state.mirostat(logits)
    if params.temperature == 0.0 and params.typical_p >= 1.0 and not params.xtc_probability:
        return int(logits.argmax())
    candidates = _candidates(logits, state)
    kept = logits if candidates is None else logits[candidates]
    if params.temperature == 0.0:
        choice = int(kept.argmax())
    else:
        weights = np.exp((kept - kept.max()) * np.float32(1.0 / max(params.temperature, MIN_TEMPERATURE)))
        choice = _draw_blockwise(weights, state.draw()) if candidates is None else _draw(weights, state.draw())
    return choice if candidates is None else int(candidates[choice])


def _candidates(logits: Logits, state: SamplerState) -> Tokens | None:
    """The tokens that the cuts leave, best first unless there are very many; None for all of them."""
    params = state.params
    tokens: Tokens | None = None
    if params.top_n_sigma > 0.0:
        finite = logits[np.isfinite(logits)]
        tokens = np.flatnonzero(logits >= finite.max() - params.top_n_sigma * finite.std(dtype=np.float64))
    if 0 < params.top_k < (len(logits) if tokens is None else len(tokens)):
        best = _best(logits if tokens is None else logits[tokens], params.top_k)
        tokens = best if tokens is None else tokens[best]
    if params.typical_p < 1.0:
        tokens = _typical(logits, np.flatnonzero(np.isfinite(logits)) if tokens is None else tokens, params.typical_p)
    if params.top_p < 1.0:
        tokens = _top_p(logits, tokens, params.top_p, params.min_p)
    if params.min_p > 0.0:
        kept = logits if tokens is None else logits[tokens]
        likely = np.flatnonzero(kept >= kept.max() + np.log(params.min_p))
        tokens = likely if tokens is None else tokens[likely]
    if params.xtc_probability > 0.0 and state.draw(_XTC_DRAW) < params.xtc_probability:
        tokens = _xtc(logits, tokens, params.xtc_threshold)
    if tokens is not None and len(tokens) <= _SORTABLE:
        tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    return tokens


def _typical(logits: Logits, tokens: Tokens, typical_p: float) -> Tokens:
    """Those whose surprise is nearest to what is to be expected, up to the mass (Meister et al., 2022)."""
    kept = logits[tokens]
    below = np.minimum(kept.max() - kept, np.float32(_ENDLESS))
    weights = np.exp(-below)
    total = float(weights.sum(dtype=np.float64))
    # A token's surprise is log(total) + below; so the difference to its mean needs no logarithms.
    expected = float(np.dot(weights, below)) / total
    return tokens[_nearest(np.abs(below - np.float32(expected)), weights, typical_p * total)]


def _top_p(logits: Logits, tokens: Tokens | None, top_p: float, min_p: float) -> Tokens:
    """The fewest and most probable tokens that reach the mass together (Holtzman et al., 2019)."""
    kept = logits if tokens is None else logits[tokens]
    best = kept.max()
    weights = np.exp(kept - best)
    total = float(weights.sum(dtype=np.float64))
    # All tokens less probable than (1 - p) / V have less than 1 - p together: the first p lies among the others.
    likely = np.flatnonzero(weights >= max(total * (1.0 - top_p) / len(kept), min_p))
    chosen = _nearest(best - kept[likely], weights[likely], top_p * total)
    return likely[chosen] if tokens is None else tokens[likely[chosen]]


def _nearest(distances: Logits, weights: Logits, target: float) -> Tokens:
    """Those of the least distances (in nats, from 0 on) whose weights together reach the target, at least one."""
    if len(weights) <= _SORTABLE:
        return _sorted_nearest(distances, weights, target)
    bins = np.minimum(distances * _BINS_PER_NAT, _MAX_BIN).astype(np.int64)
    mass = np.cumsum(np.bincount(bins, weights=weights))
    boundary = min(int(np.searchsorted(mass, target)), len(mass) - 1)
    above = np.flatnonzero(bins < boundary)
    inside = np.flatnonzero(bins == boundary)
    before = float(mass[boundary - 1]) if boundary else 0.0
    return np.concatenate([above, inside[_sorted_nearest(distances[inside], weights[inside], target - before)]])


def _sorted_nearest(distances: Logits, weights: Logits, target: float) -> Tokens:
    order = np.argsort(distances, kind="stable")
    return order[: int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), target)) + 1]


def _xtc(logits: Logits, tokens: Tokens | None, threshold: float) -> Tokens | None:
    """Without all but the last of the tokens that reach the threshold ("exclude top choices")."""
    kept = logits if tokens is None else logits[tokens]
    weights = np.exp(kept - kept.max())
    top = np.flatnonzero(weights >= threshold * weights.sum(dtype=np.float64))
    if threshold > 0.5 or len(top) < 2:
        return tokens
    excluded = top[np.argsort(-weights[top], kind="stable")[:-1]]
    left = np.delete(np.arange(len(kept)), excluded)
    return left if tokens is None else tokens[left]


def _mirostat_top_k(probabilities: NDArray[np.float64], mu: float) -> int:
    """How many tokens to keep for a surprise of `mu` bits, if probabilities fall off by Zipf's law."""
    top = -np.sort(-np.partition(probabilities, -MIROSTAT_SAMPLE)[-MIROSTAT_SAMPLE:])
    top = top[top > 0]
    if len(top) < 2:
        return 1
    ranks = np.arange(1, len(top))
    steps = np.log((ranks + 1) / ranks)
    exponent = float((steps * np.log(top[:-1] / top[1:])).sum() / (steps**2).sum())
    epsilon = exponent - 1
    if abs(epsilon) < 1e-9 or exponent <= 0:
        return len(probabilities)
    k = (epsilon * 2.0**mu / (1 - len(probabilities) ** -epsilon)) ** (1 / exponent)
    return int(min(max(round(k), 1), len(probabilities)))


def _best(logits: Logits, count: int) -> Tokens:
    """The `count` best tokens, unordered: as many blocks have their maximum at the floor or above it."""
    tokens = np.arange(len(logits))
    if count >= len(logits):
        return tokens
    blocks = logits[: len(logits) - len(logits) % _TOP_BLOCK].reshape(-1, _TOP_BLOCK)
    if count <= len(blocks):
        floor = np.partition(blocks.max(axis=1), -count)[-count]
        tokens = np.flatnonzero(logits >= floor)
    best: Tokens = tokens[np.argpartition(logits[tokens], -count)[-count:]]
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
