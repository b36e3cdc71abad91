"""Estimates how probable it is that drafted tokens are accepted, from what earlier guesses were worth.

How often guesses like this one are wrong is counted over all sequences. A sequence that copies a text differs from it
less often than that, wherever it is. One that only looks like it for some words differs more often. So each sequence
has a factor for the probability of a difference: its differences so far, divided by those that were expected.
"""

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import accumulate
from operator import mul
from typing import Final

BOUNDS: Final = (0.6, 0.7, 0.8, 0.9, 0.95)
"""Guesses are counted apart by the drafter's own estimate: a copy that has agreed for long goes on more often."""
SOURCE_PRIOR: Final = 64.0
"""Weight of a drafter's estimate against the outcomes of its guesses in all sequences, in tokens."""
SOURCE_MEMORY: Final = 2000.0
"""Tokens whose outcome counts. Older ones are forgotten."""
SEQUENCE_PRIOR: Final = 2.0
"""Expected differences that are added to both numbers of a sequence's factor, so that it begins with 1. In replays of
recorded answers, 1 to 8 make no clear difference."""
SEQUENCE_MEMORY: Final = 6.0
"""Expected differences of a sequence that count. Older ones are forgotten, because it may begin to copy, or stop."""
FADING: Final = 0.99
"""Factor on the evidence against a drafter each time it is not asked, so that it gets another chance."""
UNKNOWN: Final = 0.7
"""Estimate for a drafter before its first guess."""
MAX_EXPECTED: Final = 0.9925
"""Even a long exact copy ends somewhere."""


class _Record:
    """Guessed tokens that came true, and guesses that did not, of a drafter and with about the same estimate."""

    __slots__ = ("right", "wrong")

    def __init__(self) -> None:
        self.right = 0.0
        self.wrong = 0.0

    def observe(self, *, is_right: bool) -> None:
        if is_right:
            self.right += 1
        else:
            self.wrong += 1
        total = self.right + self.wrong
        if total > SOURCE_MEMORY:
            self.right *= SOURCE_MEMORY / total
            self.wrong *= SOURCE_MEMORY / total

    def mean(self, prior: float, weight: float) -> float:
        return (self.right + weight * prior) / (self.right + self.wrong + weight)


class _Differences:
    """Those of one sequence from the guesses of a drafter."""

    __slots__ = ("expected", "number")

    def __init__(self) -> None:
        self.number = 0.0
        self.expected = 0.0

    def observe(self, number: int, expected: float) -> None:
        self.number += number
        self.expected += expected
        if self.expected > SEQUENCE_MEMORY:
            self.number *= SEQUENCE_MEMORY / self.expected
            self.expected = SEQUENCE_MEMORY

    @property
    def factor(self) -> float:
        return (self.number + SEQUENCE_PRIOR) / (self.expected + SEQUENCE_PRIOR)

    def fade(self) -> None:
        self.number *= FADING
        self.expected *= FADING


class Acceptance:
    """The outcomes of guesses, by drafter and by sequence."""

    def __init__(self) -> None:
        self._sources: dict[str, list[_Record]] = {}
        """By drafter, one for each range of estimates."""
        self._sequences: dict[int, dict[str, _Differences]] = {}
        """By request id and drafter."""

    def observe(self, request_id: int, source: str, estimates: Items[float], num_right: int, *, is_wrong: bool) -> None:
        """Record a draft with the drafter's estimates: how many tokens came true, and whether the next one did not."""
        records = self._records(source)
        expected = 0.0
        for number, estimate in enumerate(estimates[: num_right + is_wrong]):
            record = records[bisect_right(BOUNDS, estimate)]
            expected += 1 - record.mean(estimate, SOURCE_PRIOR)
            record.observe(is_right=number < num_right)
        self._sequences.setdefault(request_id, {}).setdefault(source, _Differences()).observe(is_wrong, expected)

    def chances(self, request_id: int, source: str, estimates: Iterable[float]) -> list[float]:
        """Returns for each token the probability that it and those before it are accepted."""
        records = self._records(source)
        differences = self._sequences.get(request_id, {}).get(source)
        factor = 1.0 if differences is None else differences.factor
        each = (
            _chance(records[bisect_right(BOUNDS, estimate)].mean(estimate, SOURCE_PRIOR), factor)
            for estimate in estimates
        )
        return list(accumulate(each, mul))

    def mean(self, request_id: int, source: str) -> float:
        """Returns the probability that a token is accepted, for a drafter that has not been asked yet."""
        total = _Record()
        for record in self._records(source):
            total.right, total.wrong = total.right + record.right, total.wrong + record.wrong
        differences = self._sequences.get(request_id, {}).get(source)
        if differences is not None:
            differences.fade()
        return _chance(total.mean(UNKNOWN, SOURCE_PRIOR), 1.0 if differences is None else differences.factor)

    def forget(self, request_id: int) -> None:
        """The sequence has ended."""
        self._sequences.pop(request_id, None)

    def _records(self, source: str) -> list[_Record]:
        return self._sources.setdefault(source, [_Record() for _ in range(len(BOUNDS) + 1)])


def _chance(mean: float, factor: float) -> float:
    """Returns the probability that a token is accepted, if it is `mean` in all sequences."""
    return min(max(1 - (1 - mean) * factor, 0.0), MAX_EXPECTED)
