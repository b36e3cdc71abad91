"""The interface of drafters, which guess the next tokens of sequences."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Final, Protocol

from scheduler.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens that may follow the known tokens of a sequence."""

    tokens: list[int]
    estimates: list[float]
    """For each token the estimated probability, from 0 to 1, that it is accepted if all tokens before it were."""


NO_DRAFT: Final = Draft([], [])


class Drafter(Protocol):
    """Guesses tokens. A wrong guess costs time, but it changes no answer.

    Speculative decoding: Leviathan et al., 2023. Here a guess is kept only if it equals the token that the sampler
    draws at its place, so the answer is the one without drafts.
    """

    source: str
    """Name in statistics, such as `suffix`, `prediction` or `model`."""

    def seconds(self, num_sequences: int, num_tokens: int) -> float:
        """Returns how long it takes to guess `num_tokens` tokens for each of `num_sequences` sequences."""

    def draft(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[Draft]:
        """Returns a guess for each of these running sequences, at most `max_tokens` tokens long; perhaps NO_DRAFT."""

    def ended(self, sequence: Sequence) -> None:
        """A sequence has ended or was preempted. Called at most once until it runs again."""
