"""Drafts the prediction that came with a request: text that the answer probably contains."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Final

from kvcache.tree import TOKEN_BYTES
from scheduler.drafts.drafter import NO_DRAFT, Draft
from scheduler.drafts.matching import common_tokens, find_tokens, tokens_of
from scheduler.sequence import Sequence

TRUST: Final = 8
"""As if the answer had agreed with the prediction for so many tokens before, because the client says so."""
NEARBY: Final = 64
"""After a difference, two equal tokens suffice so many tokens further on. Elsewhere three are needed."""
MAX_KEPT: Final = 32
"""Of the evidence before a difference, half is kept, at most so many tokens."""


@dataclass(slots=True)
class _Follower:
    """Where in its prediction an answer is."""

    num_known: int
    place: int = 0
    """The prediction's token that comes next, or where the answer was lost."""
    length: int = 0
    """Tokens that have agreed lately."""
    is_lost: bool = False


class PredictionDrafter:
    """Implements Drafter. Follows the prediction as long as the answer agrees, and finds its place again afterwards."""

    source = "prediction"

    def __init__(self) -> None:
        self._followers: dict[int, _Follower] = {}
        """By request id."""

    def seconds(self, num_sequences: int, num_tokens: int) -> float:  # noqa: ARG002
        return 0.0

    def draft(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[Draft]:
        return [
            self._draft(sequence, most) if sequence.prediction else NO_DRAFT
            for sequence, most in zip(sequences, max_tokens, strict=True)
        ]

    def _draft(self, sequence: Sequence, most: int) -> Draft:
        follower = self._followers.get(sequence.request_id)
        if follower is None:
            follower = self._followers[sequence.request_id] = _Follower(sequence.num_prompt)
        self._follow(follower, sequence)
        start = follower.place * TOKEN_BYTES
        if follower.is_lost or start >= len(sequence.prediction):
            return NO_DRAFT
        tokens = tokens_of(sequence.prediction[start : start + most * TOKEN_BYTES])
        evidence = follower.length + TRUST
        return Draft(tokens, [evidence / (evidence + 1)] * len(tokens))

    def _follow(self, follower: _Follower, sequence: Sequence) -> None:
        """Compare the new tokens with the prediction."""
        new = sequence.known[follower.num_known * TOKEN_BYTES :]
        if not new:
            return
        follower.num_known = sequence.num_known
        if not follower.is_lost:
            start = follower.place * TOKEN_BYTES
            num_equal = common_tokens(new, sequence.prediction[start : start + len(new)])
            follower.place += num_equal
            follower.length += num_equal
            follower.is_lost = num_equal * TOKEN_BYTES < len(new)
        if follower.is_lost:
            self._find(follower, sequence)

    def _find(self, follower: _Follower, sequence: Sequence) -> None:
        """Look for the answer's last tokens: a little further on, then in all of the rest, then from the beginning."""
        place, end = follower.place, len(sequence.prediction) // TOKEN_BYTES
        num_answer = sequence.num_known - sequence.num_prompt
        for size, start, stop in ((2, place - 1, place + NEARBY), (3, place - 2, end), (3, 0, place)):
            if num_answer < size:
                continue
            wanted = bytes(sequence.known[-size * TOKEN_BYTES :])
            found = find_tokens(wanted, sequence.prediction, max(0, start), min(stop, end))
            if found >= 0:
                follower.place, follower.is_lost = found + size, False
                follower.length = min(follower.length // 2, MAX_KEPT)
                return

    def ended(self, sequence: Sequence) -> None:
        self._followers.pop(sequence.request_id, None)
