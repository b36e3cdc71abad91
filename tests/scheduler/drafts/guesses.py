"""A drafter for tests, which knows the answers."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from random import Random

from scheduler.drafts.drafter import NO_DRAFT, Draft
from scheduler.sequence import Sequence


class Guesses:
    """Drafts parts of the true answers, of which some have a wrong token."""

    source = "guesses"

    def __init__(
        self,
        answers: Mapping[int, list[int]],
        random: Random,
        *,
        wrong: float = 0.5,
        length: Callable[[], int] | None = None,
        acceptance: float = 0.99,
        seconds: float = 0.0,
    ) -> None:
        """`answers`: by request id. `wrong`: how many of the drafts have a wrong token. `length`: of the next draft."""
        self.answers = answers
        self.ended_requests: list[int] = []
        self.asked: list[int] = []
        """The maximum lengths that were asked for."""
        self._random = random
        self._wrong = wrong
        self._length = length or (lambda: random.randint(0, 9))
        self._acceptance = acceptance
        self._seconds = seconds

    def seconds(self, num_sequences: int, num_tokens: int) -> float:
        return self._seconds * num_sequences * num_tokens

    def draft(self, sequences: Items[Sequence], max_tokens: Items[int]) -> list[Draft]:
        self.asked += max_tokens
        return [self._draft(sequence, most) for sequence, most in zip(sequences, max_tokens, strict=True)]

    def _draft(self, sequence: Sequence, most: int) -> Draft:
        place = sequence.num_known - sequence.num_prompt
        tokens = self.answers.get(sequence.request_id, [])[place : place + min(most, self._length())]
        if tokens and self._random.random() < self._wrong:
            tokens[self._random.randrange(len(tokens))] += 1
        return Draft(tokens, [self._acceptance] * len(tokens)) if tokens else NO_DRAFT

    def ended(self, sequence: Sequence) -> None:
        self.ended_requests.append(sequence.request_id)
