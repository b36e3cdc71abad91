"""The cuts of sampling: which tokens of a row are left to draw from, without sorting the vocabulary.

On flat distributions over 49k tokens, a native chain with top_p takes 5 ms per token. Here one vectorised comparison
leaves a few hundred candidates, and only these are sorted.
"""

from typing import Final

import numpy as np

from scheduler.messages import SamplingParams
from scheduler.softmax import Logits, Tokens, at_least, kept_array, total_of, weights_of

_GROUPS: Final = 4096
"""A row is divided into at most this number of groups, to find its best tokens."""
_SORTABLE: Final = 4096
"""Up to this number of candidates, all are sorted. Otherwise only the bin that contains the boundary is sorted."""
_SHARES: Final = (512, 8192)
"""Tried in turn: tokens below this part of the mass that may be left out."""
_BINS_PER_NAT: Final = 64
_ENDLESS: Final = 128.0
"""In nats: exp(-128) is 0 in single precision."""
_MAX_BIN: Final = int(_ENDLESS) * _BINS_PER_NAT


def candidates(
    logits: Logits, best: np.float32, params: SamplingParams, *, excludes_top: bool = False
) -> Tokens | None:
    """Returns the tokens after all cuts, best first if there are at most _SORTABLE; None for the whole vocabulary.

    `best` is the best logit. `excludes_top`: whether XTC cuts this time.
    """
    tokens: Tokens | None = None
    if params.top_n_sigma > 0.0:
        finite = logits[np.isfinite(logits)]
        tokens = at_least(logits, float(best) - params.top_n_sigma * float(finite.std(dtype=np.float64)))
    if 0 < params.top_k < (len(logits) if tokens is None else len(tokens)):
        top = best_tokens(logits if tokens is None else logits[tokens], params.top_k)
        tokens = top if tokens is None else tokens[top]
    if params.typical_p < 1.0:
        tokens = _typical(logits, best, tokens, params.typical_p)
    if params.top_p < 1.0:
        tokens = _top_p(logits, best, tokens, params.top_p, params.min_p)
    if params.min_p > 0.0:
        kept = logits if tokens is None else logits[tokens]
        likely = at_least(kept, float(kept.max()) + float(np.log(params.min_p)))
        tokens = likely if tokens is None else tokens[likely]
    if excludes_top:
        tokens = _xtc(logits, tokens, params.xtc_threshold)
    if tokens is not None and len(tokens) <= _SORTABLE:
        tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    return tokens


def best_tokens(logits: Logits, count: int) -> Tokens:
    """Returns the `count` best tokens, unordered.

    The `count` best groups have maxima of at least `floor`, so at least `count` tokens reach it.
    """
    if count >= len(logits):
        return np.arange(len(logits))
    rows = len(logits) // _GROUPS
    if rows > 1 and count <= _GROUPS:
        maxima = logits[: rows * _GROUPS].reshape(rows, _GROUPS).max(axis=0)
        tokens = at_least(logits, float(np.partition(maxima, -count)[-count]))
        return tokens[np.argpartition(logits[tokens], -count)[-count:]]
    return np.argpartition(logits, -count)[-count:]


def _typical(logits: Logits, best: np.float32, tokens: Tokens | None, typical_p: float) -> Tokens:
    """Returns the tokens whose surprise is nearest to its mean, up to the mass `typical_p` (Meister et al., 2022)."""
    kept = logits if tokens is None else logits[tokens]
    distances = np.subtract(best, kept, out=kept_array("distances", len(kept)))
    np.minimum(distances, np.float32(_ENDLESS), out=distances)
    weights = weights_of(kept, best)
    total = total_of(weights)
    # A token's surprise is log(total) + below, so its distance from the mean needs no logarithms.
    expected = total_of(np.multiply(weights, distances, out=kept_array("products", len(kept)))) / total
    np.abs(np.subtract(distances, np.float32(expected), out=distances), out=distances)
    target = typical_p * total
    likely = _likely(weights, target, total)
    nearest = _nearest(distances[likely], weights[likely], target)
    reach = float(distances[likely[nearest]].max())
    within = np.flatnonzero(distances <= np.float32(reach))
    within = within[_nearest(distances[within], weights[within], target)]
    within = within[kept[within] > -np.inf]
    return within if tokens is None else tokens[within]


def _top_p(logits: Logits, best: np.float32, tokens: Tokens | None, top_p: float, min_p: float) -> Tokens:
    """Returns the fewest most probable tokens that together reach the mass `top_p` (Holtzman et al., 2019)."""
    kept = logits if tokens is None else logits[tokens]
    if tokens is not None:
        best = kept.max()
    weights = weights_of(kept, best)
    total = total_of(weights)
    target = top_p * total
    likely = _likely(weights, target, total, min_p)
    nearest = _nearest(best - kept[likely], weights[likely], target)
    return likely[nearest] if tokens is None else tokens[likely[nearest]]


def _likely(weights: Logits, target: float, total: float, least: float = 0.0) -> Tokens:
    """Returns few tokens among which are the most probable ones that reach the mass `target`, or weigh `least`.

    Tokens that weigh less than (total - target) / V have together less than total - target, so the others reach the
    target. Usually far fewer tokens do.
    """
    for share in (*_SHARES, len(weights)):
        floor = (total - target) / share
        tokens = at_least(weights, max(floor, least))
        if floor <= least or float(weights[tokens].sum(dtype=np.float64)) >= target:
            break
    return tokens


def _nearest(distances: Logits, weights: Logits, target: float) -> Tokens:
    """Returns the tokens of least distance (in nats, at least 0) whose weights reach the target; at least one token."""
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
    """Removes all tokens that reach the threshold but the least probable of them ("exclude top choices")."""
    kept = logits if tokens is None else logits[tokens]
    weights = weights_of(kept, kept.max())
    top = at_least(weights, threshold * total_of(weights))
    if threshold > 0.5 or len(top) < 2:
        return tokens
    excluded = top[np.argsort(-weights[top], kind="stable")[:-1]]
    left = np.delete(np.arange(len(kept)), excluded)
    return left if tokens is None else tokens[left]
