"""Estimates how probable it is that the next drafted token is accepted, from what earlier guesses were worth."""

from typing import Final

BOUNDS: Final = (0.6, 0.7, 0.8, 0.9, 0.95)
"""Guesses are counted apart by the drafter's own estimate: a copy that has agreed for long goes on more often."""
SOURCE_PRIOR: Final = 16.0
"""Weight of a drafter's estimate against the outcomes of its guesses in all sequences, in tokens."""
SEQUENCE_PRIOR: Final = 4.0
"""Weight of that against the outcomes of the guesses in this sequence, in tokens. Small, because sequences differ: some
copy their prompt, others only look like it for some words."""
SOURCE_MEMORY: Final = 2000.0
SEQUENCE_MEMORY: Final = 64.0
"""Tokens whose outcome counts. Older ones are forgotten."""
FADING: Final = 0.99
"""Factor on the evidence against a drafter each time it is not asked, so that it gets another chance."""
UNKNOWN: Final = 0.7
"""Estimate for a drafter before its first guess."""
MAX_EXPECTED: Final = 0.995


class _Record:
    """Guessed tokens that came true, and guesses that did not."""

    __slots__ = ("memory", "right", "wrong")

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.right = 0.0
        self.wrong = 0.0

    def observe(self, num_right: int, *, is_wrong: bool) -> None:
        self.right += num_right
        self.wrong += is_wrong
        total = self.right + self.wrong
        if total > self.memory:
            self.right *= self.memory / total
            self.wrong *= self.memory / total

    def mean(self, prior: float, weight: float) -> float:
        return (self.right + weight * prior) / (self.right + self.wrong + weight)

    def fade(self) -> None:
        self.right *= FADING
        self.wrong *= FADING


class Acceptance:
    """The outcomes of guesses, by drafter and by sequence."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, int], _Record] = {}
        self._sequences: dict[int, dict[tuple[str, int], _Record]] = {}
        """By request id."""

    def observe(self, request_id: int, source: str, estimate: float, num_right: int, *, is_wrong: bool) -> None:
        """Record a guess with the drafter's `estimate`: how many tokens came true, and whether the next one did not."""
        key = source, _bin(estimate)
        self._source(key).observe(num_right, is_wrong=is_wrong)
        records = self._sequences.setdefault(request_id, {})
        if key not in records:
            records[key] = _Record(SEQUENCE_MEMORY)
        records[key].observe(num_right, is_wrong=is_wrong)

    def expected(self, request_id: int, source: str, estimate: float) -> float:
        """Returns the probability that a token is accepted after those before it were; at most MAX_EXPECTED."""
        key = source, _bin(estimate)
        prior = self._source(key).mean(estimate, SOURCE_PRIOR)
        record = self._sequences.get(request_id, {}).get(key)
        return min(prior if record is None else record.mean(prior, SEQUENCE_PRIOR), MAX_EXPECTED)

    def mean(self, request_id: int, source: str) -> float:
        """Returns the same for a drafter that has not been asked yet, whatever it will estimate."""
        right = wrong = 0.0
        for number in range(len(BOUNDS) + 1):
            record = self._source((source, number))
            right, wrong = right + record.right, wrong + record.wrong
        prior = (right + SOURCE_PRIOR * UNKNOWN) / (right + wrong + SOURCE_PRIOR)
        right = wrong = 0.0
        for (name, _), record in self._sequences.get(request_id, {}).items():
            if name == source:
                right, wrong = right + record.right, wrong + record.wrong
                record.fade()
        return min((right + SEQUENCE_PRIOR * prior) / (right + wrong + SEQUENCE_PRIOR), MAX_EXPECTED)

    def forget(self, request_id: int) -> None:
        """The sequence has ended."""
        self._sequences.pop(request_id, None)

    def _source(self, key: tuple[str, int]) -> _Record:
        record = self._sources.get(key)
        if record is None:
            record = self._sources[key] = _Record(SOURCE_MEMORY)
        return record


def _bin(estimate: float) -> int:
    return sum(estimate >= bound for bound in BOUNDS)
