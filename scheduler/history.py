"""Repetition penalties, which depend on the earlier tokens of a sequence: frequency, presence, repeat and DRY."""

import copy
import math
from collections import Counter, deque
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import SamplingParams

Logits = NDArray[np.float32]

_MAX_EXPONENT: Final = math.log(np.finfo(np.float32).max)
_MAX_MATCH: Final = 512
"""Longest repetition that DRY measures. Beyond it, a penalty with a base above 1.2 is practically infinite anyway."""


class History:
    """The earlier tokens of one sequence that its penalties need."""

    @staticmethod
    def is_needed(params: SamplingParams) -> bool:
        penalties = (params.frequency_penalty, params.presence_penalty, params.repeat_penalty)
        return penalties != (0.0, 0.0, 1.0) or params.dry_multiplier != 0.0

    def __init__(self, params: SamplingParams, prompt: list[int]) -> None:
        self._params = params
        self._counts: Counter[int] = Counter()
        """Counts of the generated tokens only, as OpenAI's penalties require."""
        window = params.repeat_last_n if params.repeat_last_n >= 0 else None
        self._window: deque[int] = deque(prompt if params.repeat_penalty != 1.0 else (), window)
        self._window_counts = Counter(self._window)
        self._tokens: list[int] = list(prompt) if params.dry_multiplier else []
        """Prompt and generated tokens. Empty without DRY."""
        self._breakers = frozenset(params.dry_breakers)

    def copy(self) -> Self:
        """Returns an independent history of the same tokens, to look ahead."""
        other = copy.copy(self)
        other._counts = self._counts.copy()
        other._window = self._window.copy()
        other._window_counts = self._window_counts.copy()
        other._tokens = self._tokens.copy()
        return other

    def append(self, token: int) -> None:
        params = self._params
        self._counts[token] += 1
        if params.repeat_penalty != 1.0 and self._window.maxlen != 0:
            if len(self._window) == self._window.maxlen:
                oldest = self._window[0]
                self._window_counts[oldest] -= 1
                if not self._window_counts[oldest]:
                    del self._window_counts[oldest]
            self._window.append(token)
            self._window_counts[token] += 1
        if params.dry_multiplier:
            self._tokens.append(token)

    def penalize(self, logits: Logits) -> None:
        """Apply the penalties to a row of logits in place."""
        params = self._params
        if self._window_counts:
            recent = np.fromiter(self._window_counts, np.intp, len(self._window_counts))
            row = logits[recent]
            logits[recent] = np.where(row > 0, row / params.repeat_penalty, row * params.repeat_penalty)
        if self._counts and (params.frequency_penalty or params.presence_penalty):
            tokens = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[tokens] -= counts * params.frequency_penalty + params.presence_penalty
        if params.dry_multiplier:
            self._penalize_repetition(logits)

    def _penalize_repetition(self, logits: Logits) -> None:
        """DRY ("don't repeat yourself"): penalises tokens that would continue a repetition, more if it is longer.

        A repetition is an earlier occurrence of the tokens at the end of the text. It contains no breaker.
        """
        params = self._params
        window = (
            self._tokens if params.dry_last_n < 0 else self._tokens[-params.dry_last_n :] if params.dry_last_n else []
        )
        limit = self._reach(window)
        if limit < params.dry_allowed_length:
            return
        backward = np.array(window[::-1], np.int32)
        places = np.flatnonzero(backward[1:] == backward[0]) + 1
        lengths = np.ones(len(places), np.int64)
        growing = np.arange(len(places))
        for length in range(1, limit):
            ends = places[growing] + length
            growing = growing[ends < len(backward)]
            growing = growing[backward[places[growing] + length] == backward[length]]
            if not len(growing):
                break
            lengths[growing] = length + 1
        long = lengths >= params.dry_allowed_length
        exponents = (lengths[long] - params.dry_allowed_length).astype(np.float64)
        if params.dry_base > 1.0:
            exponents = np.minimum(exponents, _MAX_EXPONENT / math.log(params.dry_base))
        longest: dict[int, float] = {}
        for token, exponent in zip(backward[places[long] - 1].tolist(), exponents.tolist(), strict=True):
            longest[token] = max(longest.get(token, 0.0), exponent)
        for token, exponent in longest.items():
            logits[token] -= min(params.dry_multiplier * params.dry_base**exponent, float(np.finfo(np.float32).max) / 4)

    def _reach(self, window: list[int]) -> int:
        """Returns the number of tokens after the last breaker, at most _MAX_MATCH."""
        reach = 0
        for token in reversed(window[-_MAX_MATCH:]):
            if token in self._breakers:
                break
            reach += 1
        return reach
