"""Rows of logits for the sampling tests."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Row = NDArray[np.float32]
NO_EOG = np.array([], dtype=np.intp)

ROWS = st.integers(0, 10_000).map(
    lambda seed: np.random.default_rng(seed).normal(0, 1 + seed % 4, 200 + seed % 300).astype(np.float32)
)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    result: NDArray[np.float64] = weights / weights.sum()
    return result
