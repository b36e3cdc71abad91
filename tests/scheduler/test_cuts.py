"""The cuts on rows of large vocabularies, compared with sorting all of a row in double precision."""

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.cuts import best_tokens, candidates
from scheduler.messages import SamplingParams
from tests.scheduler.rows import Row, softmax

SIZES = pytest.mark.parametrize("size", [500, 5000, 49_152, 262_144])
SPREADS = pytest.mark.parametrize("spread", [0.1, 0.5, 2.0, 5.0])
"""From rows whose tokens are nearly equal to rows in which a few tokens have all the mass."""


def row_of(size: int, spread: float) -> Row:
    row = np.random.default_rng(size).normal(0, spread, size).astype(np.float32)
    row[:: size // 7] = -np.inf
    return row


def cut(row: Row, params: SamplingParams) -> set[int]:
    tokens = candidates(row, row.max(), params)
    assert tokens is not None
    assert len(set(tokens.tolist())) == len(tokens)
    return set(tokens.tolist())


def first(order: NDArray[np.intp], shares: NDArray[np.float64], mass: float) -> int:
    """The number of tokens that reach the mass, in this order."""
    return int(np.searchsorted(np.cumsum(shares[order]), mass)) + 1


@SIZES
@SPREADS
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(size: int, spread: float, share: float) -> None:
    row = row_of(size, spread)
    shares = softmax(row.astype(np.float64))
    order = np.argsort(-row, kind="stable")
    kept = cut(row, SamplingParams(top_p=share))
    count = first(order, shares, share)
    assert abs(len(kept) - count) <= 1 + count // 10_000, "single precision decides at the boundary"
    assert kept >= set(order[: min(count, len(kept)) - 1].tolist())


@SIZES
@SPREADS
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_typical_p_keeps_the_tokens_of_the_most_typical_surprise(size: int, spread: float, share: float) -> None:
    row = row_of(size, spread)
    shares = softmax(row.astype(np.float64))
    surprises = -np.log(np.maximum(shares, 1e-300))
    distances = np.abs(surprises - (shares * surprises).sum())
    order = np.argsort(distances, kind="stable")
    kept = cut(row, SamplingParams(typical_p=share))
    count = first(order, shares, share)
    assert abs(len(kept) - count) <= 1 + count // 1000
    limit = np.sort(distances)[min(count, len(kept)) - 1]
    sure = set(np.flatnonzero(distances < limit - 1e-4).tolist())
    possible = set(np.flatnonzero(distances < limit + 0.05).tolist())
    assert len(sure - kept) <= count // 1000
    assert kept <= possible
    assert np.isfinite(row[list(kept)]).all()


@SIZES
@SPREADS
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_min_p_keeps_the_tokens_above_a_part_of_the_best(size: int, spread: float, share: float) -> None:
    row = row_of(size, spread)
    floor = float(row.max()) + np.log(share)
    kept = cut(row, SamplingParams(min_p=share))
    assert kept >= set(np.flatnonzero(row > floor + 1e-5).tolist())
    assert kept <= set(np.flatnonzero(row > floor - 1e-5).tolist())


@SIZES
@SPREADS
@pytest.mark.parametrize("count", [1, 40, 5000])
def test_top_k_keeps_the_best(size: int, spread: float, count: int) -> None:
    row = row_of(size, spread)
    wanted = np.sort(row)[::-1][:count]
    assert np.sort(row[best_tokens(row, count)])[::-1].tolist() == wanted.tolist()


def test_few_candidates_are_sorted_whatever_cut_leaves_them() -> None:
    row = row_of(49_152, 2.0)
    for params in (
        SamplingParams(top_k=40),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.1),
        SamplingParams(typical_p=0.2),
        SamplingParams(top_n_sigma=0.5),
    ):
        tokens = candidates(row, row.max(), params)
        assert tokens is not None
        assert (np.diff(row[tokens]) <= 0).all()


def test_without_a_cut_the_whole_vocabulary_is_left() -> None:
    row = row_of(500, 1.0)
    assert candidates(row, row.max(), SamplingParams()) is None
