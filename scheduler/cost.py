"""Predicts the duration of a step from earlier steps."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FORGETTING: Final = 0.98
"""Factor on the weight of all earlier observations per step. The ratios of the coefficients change slowly."""
SMOOTHING: Final = 0.5
"""Weight of the newest step in the estimate of the machine's current speed, which changes within seconds."""
TOKENS: Final = 64.0
CONTEXT: Final = 1024.0
"""Units of tokens and of context. They scale all terms of the fit to about 1."""
PRIOR: Final = np.diag([1.0, 0.05, 0.05])
"""Weight of the previous estimate of each coefficient, in steps. The small weight of the token term attributes the cost
to tokens as long as all steps look alike."""


class StepCost:
    """The model: seconds of a step = a + b * tokens + c * tokens * context, with no negative coefficient.

    The coefficients are fitted by least squares over decaying observations. An extra factor follows the machine's speed
    from step to step.
    """

    def __init__(self, seconds_per_token: float) -> None:
        """`seconds_per_token`: the initial estimate, for an empty context."""
        self._weights: NDArray[np.float64] = np.array([0.0, seconds_per_token * TOKENS, 0.0])
        self._squares = PRIOR
        self._products = self._squares @ self._weights
        self._scale = 1.0

    def observe(self, num_tokens: int, num_pairs: int, seconds: float) -> None:
        """Record the duration of a step. `num_pairs`: the sum over its tokens of the cells that each attends to."""
        terms = np.array([1.0, num_tokens / TOKENS, num_pairs / (TOKENS * CONTEXT)])
        unscaled = float(self._weights @ terms)
        expected = (1 - SMOOTHING) * self._scale * unscaled + SMOOTHING * seconds
        self._squares = FORGETTING * self._squares + np.outer(terms, terms)
        self._products = FORGETTING * self._products + terms * seconds
        # PRIOR again: keeps a coefficient stable while the observations do not determine it.
        solved = np.linalg.solve(self._squares + PRIOR, self._products + PRIOR @ self._weights)
        self._weights = np.maximum(solved, [0.0, 1e-3 * unscaled / terms[1], 0.0])
        self._scale = expected / float(self._weights @ terms)  # the new coefficients must predict the same seconds

    @property
    def fixed_seconds(self) -> float:
        """Seconds of a step without tokens."""
        return float(self._scale * self._weights[0])

    def token_seconds(self, context: float) -> float:
        """Seconds of one more token that attends to `context` cells."""
        return float(self._scale * (self._weights[1] + self._weights[2] * context / CONTEXT) / TOKENS)
