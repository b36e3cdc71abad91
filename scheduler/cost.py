"""What a step will take, learned from the steps before it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FORGETTING: Final = 0.98
"""What a step counts for after one more. The shape of the cost is the model's and the machine's, and changes slowly."""
SMOOTHING: Final = 0.5
"""Weight of the newest step in how fast the machine is just now, which changes within seconds."""
TOKENS: Final = 64.0
CONTEXT: Final = 1024.0
"""Units of the terms, so that all are near one."""
PRIOR: Final = np.diag([1.0, 0.05, 0.05])
"""Steps that what was believed of each term counts for. Where steps are alike, it is the tokens that cost."""


class StepCost:
    """Seconds of a step = a + b * tokens + c * tokens * context, all of them 0 or more.

    Fitted by least squares over decaying observations; a factor on top follows the machine's speed from step to step.
    """

    def __init__(self, seconds_per_token: float) -> None:
        """Starts from the cost of a token at an empty context."""
        self._weights: NDArray[np.float64] = np.array([0.0, seconds_per_token * TOKENS, 0.0])
        self._squares = PRIOR
        self._products = self._squares @ self._weights
        self._scale = 1.0

    def observe(self, num_tokens: int, num_pairs: int, seconds: float) -> None:
        """A step took so long. `num_pairs`: the cells that each of its tokens attends to, together."""
        terms = np.array([1.0, num_tokens / TOKENS, num_pairs / (TOKENS * CONTEXT)])
        unscaled = float(self._weights @ terms)
        expected = (1 - SMOOTHING) * self._scale * unscaled + SMOOTHING * seconds
        self._squares = FORGETTING * self._squares + np.outer(terms, terms)
        self._products = FORGETTING * self._products + terms * seconds
        # PRIOR once more: what is not seen for long keeps its weight instead of wandering off
        solved = np.linalg.solve(self._squares + PRIOR, self._products + PRIOR @ self._weights)
        self._weights = np.maximum(solved, [0.0, 1e-3 * unscaled / terms[1], 0.0])
        self._scale = expected / float(self._weights @ terms)  # whatever became of the shape

    @property
    def fixed_seconds(self) -> float:
        """Of a step, however small."""
        return float(self._scale * self._weights[0])

    def token_seconds(self, context: float) -> float:
        """Of one more token that attends to so many cells."""
        return float(self._scale * (self._weights[1] + self._weights[2] * context / CONTEXT) / TOKENS)
