"""Log probabilities of tokens from the model's raw logits: before bias, penalties, grammars and temperature."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scheduler.cuts import best_tokens
from scheduler.failures import check_best
from scheduler.messages import TokenLogprob
from scheduler.softmax import total_of, weights_of

UNLIKELY: Final = -9999.0
"""The lowest value that is reported, as in OpenAI's API."""


def log_probabilities(logits: NDArray[np.float32], token: int, num_top: int) -> TokenLogprob:
    """Returns the log probability of the token and those of the `num_top` best tokens, from a row of logits.

    Raises InvalidLogitsError if the row is not valid.
    """
    best = logits.max()
    check_best(float(best))
    normalizer = float(best) + math.log(total_of(weights_of(logits, best)))
    top: list[tuple[int, float]] = []
    if num_top:
        tokens = best_tokens(logits, num_top)
        tokens = tokens[np.lexsort((tokens, -logits[tokens]))]
        top = [(int(other), _logprob(logits, int(other), normalizer)) for other in tokens]
    return _logprob(logits, token, normalizer), top


def _logprob(logits: NDArray[np.float32], token: int, normalizer: float) -> float:
    return max(float(logits[token]) - normalizer, UNLIKELY)
