"""Mirostat on single rows; test_sampling.py tests its target over a text."""

import numpy as np
import pytest

from scheduler.mirostat import mirostat
from scheduler.softmax import weights_of
from tests.scheduler.rows import softmax

ROW = np.random.default_rng(0).normal(0, 2.5, 2000).astype(np.float32)
SHARES = softmax(ROW.astype(np.float64))
UNIFORMS = np.linspace(0, 1, 200, endpoint=False).tolist()


@pytest.mark.parametrize("limit", [6.0, 9.0, 12.0])
def test_version_2_cuts_tokens_of_more_surprise(limit: float) -> None:
    weights = weights_of(ROW, ROW.max()).copy()
    drawn = [mirostat(weights, 2, limit, uniform) for uniform in UNIFORMS]
    kept = np.flatnonzero(-np.log2(SHARES) <= limit)
    assert {token for token, _ in drawn} <= set(kept.tolist())
    for token, surprise in drawn:
        assert surprise == pytest.approx(-np.log2(SHARES[token] / SHARES[kept].sum()), abs=1e-3)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limit", [-5000.0, -1.0, 0.0])
def test_a_limit_that_cuts_every_token_leaves_the_best(version: int, limit: float) -> None:
    weights = weights_of(ROW, ROW.max()).copy()
    for uniform in UNIFORMS[::20]:
        assert mirostat(weights, version, limit, uniform) == (int(ROW.argmax()), 0.0)


def test_version_1_keeps_the_best_tokens_of_a_number_that_grows_with_the_limit() -> None:
    weights = weights_of(ROW, ROW.max()).copy()
    found = [{mirostat(weights, 1, limit, uniform).token for uniform in UNIFORMS} for limit in (1.0, 3.0, 6.0)]
    assert [len(tokens) for tokens in found] == sorted(len(tokens) for tokens in found)
    assert len(found[0]) < len(found[2])
    order = np.argsort(-ROW).tolist()
    assert max(order.index(token) for token in found[2]) < len(ROW) // 4
