"""Estimates how probable it is that the next drafted token is accepted, from what earlier guesses were worth.

How often guesses like this one are wrong is counted over all sequences. A sequence that copies a text differs from it
less often than that, wherever it is. One that only looks like it for some words differs more often. So each sequence
has a factor for the probability of a difference: its differences so far, divided by those that were expected.
"""

from typing import Final

BOUNDS: Final = (0.6, 0.7, 0.8, 0.9, 0.95)
"""Guesses are counted apart by the drafter's own estimate: a copy that has agreed for long goes on more often."""
SOURCE_PRIOR: Final = 16.0
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
MAX_EXPECTED: Final = 0.995


class _Record:
    """Guessed tokens that came true, and guesses that did not."""

    __slots__ = ("right", "wrong")

    def __init__(self) -> None:
        self.right = 0.0
        self.wrong = 0.0

    def observe(self, num_right: int, *, is_wrong: bool) -> None:
        self.right += num_right
        self.wrong += is_wrong
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
        self._sources: dict[tuple[str, int], _Record] = {}
        self._sequences: dict[int, dict[str, _Differences]] = {}
        """By request id and drafter."""

    def observe(self, request_id: int, source: str, estimate: float, num_right: int, *, is_wrong: bool) -> None:
        """Record a guess with the drafter's `estimate`: how many tokens came true, and whether the next one did not."""
        record = self._source((source, _bin(estimate)))
        expected = (num_right + is_wrong) * (1 - record.mean(estimate, SOURCE_PRIOR))
        self._sequences.setdefault(request_id, {}).setdefault(source, _Differences()).observe(is_wrong, expected)
        record.observe(num_right, is_wrong=is_wrong)

    def expected(self, request_id: int, source: str, estimate: float) -> float:
        """Returns the probability that a token is accepted after those before it were; at most MAX_EXPECTED."""
        mean = self._source((source, _bin(estimate))).mean(estimate, SOURCE_PRIOR)
        return _chance(mean, self._sequences.get(request_id, {}).get(source))

    def mean(self, request_id: int, source: str) -> float:
        """Returns the same for a drafter that has not been asked yet, whatever it will estimate."""
        total = _Record()
        for number in range(len(BOUNDS) + 1):
            record = self._source((source, number))
            total.right, total.wrong = total.right + record.right, total.wrong + record.wrong
        differences = self._sequences.get(request_id, {}).get(source)
        if differences is not None:
            differences.fade()
        return _chance(total.mean(UNKNOWN, SOURCE_PRIOR), differences)

    def forget(self, request_id: int) -> None:
        """The sequence has ended."""
        self._sequences.pop(request_id, None)

    def _source(self, key: tuple[str, int]) -> _Record:
        return self._sources.setdefault(key, _Record())


def _chance(mean: float, differences: _Differences | None) -> float:
    """Returns the probability that a token is accepted, if it is `mean` in all sequences."""
    factor = 1.0 if differences is None else differences.factor
    return min(max(1 - (1 - mean) * factor, 0.0), MAX_EXPECTED)


def _bin(estimate: float) -> int:
    return sum(estimate >= bound for bound in BOUNDS)
