"""The scheduling policy: the order of admission, the order of prefill, and the victim of a preemption.

The scheduler decides how much fits into a step and into memory. The policy decides which sequence goes first. The
scheduler reports every event of a sequence to the policy, so a policy can keep accounts.
"""

import bisect
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Protocol

from scheduler.plan import Chunk, Plan
from scheduler.sequence import Sequence, Status

_by_arrival = attrgetter("arrival")


class Policy(Protocol):
    """Owns the waiting queue, and ranks the sequences that run.

    Any ranking is safe: no policy can lose a token, and the scheduler makes progress under all of them. A policy that
    never returns a waiting sequence as a candidate starves it.
    """

    # -- events ------------------------------------------------------------------------------------------------------

    def submitted(self, sequence: Sequence) -> None:
        """The sequence is new and waits."""

    def admitted(self, sequence: Sequence) -> None:
        """The sequence was a candidate and runs now. Its prefix hit has `num_computed` tokens."""

    def preempted(self, sequence: Sequence) -> None:
        """The sequence ran, lost its memory and waits again."""

    def computed(self, plan: Plan) -> None:
        """A step has computed these chunks. Called before any of their sequences ends."""

    def ended(self, sequence: Sequence) -> None:
        """The sequence has ended, for any reason. Its status still shows whether it waited or ran."""

    def charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None:
        """Tokens were computed for this tenant outside of the scheduler's steps, such as those of embeddings."""

    # -- decisions ---------------------------------------------------------------------------------------------------

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        """The waiting sequences, in the order in which they may be admitted.

        The scheduler calls `admitted` while it iterates. It skips a candidate whose prefix is being computed or read
        from the disk. It stops at the first candidate that does not fit, so a smaller one never overtakes it.
        `num_cached` returns how many tokens of a sequence are in the cache now. It takes some microseconds.
        """

    def contends(self) -> bool:
        """Whether a waiting sequence may take the place of a running one. Cheap, because every full step asks it."""

    def gives_way(self, sequence: Sequence, running: list[Sequence]) -> Sequence | None:
        """Returns the sequence of `running` to preempt for a candidate that does not fit; None if the candidate waits.

        The scheduler asks again until the candidate fits or the answer is None.
        """

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        """Returns the order in which this step computes `prompts` (at least one, in order of arrival).

        The number is the maximum of tokens that this step computes for the sequence. A sequence may use the part of the
        `budget` that the sequences before it left, so the sum of the shares may exceed the budget.
        """

    def is_urgent(self, prompts: list[Sequence]) -> bool:
        """Whether the prompts (at least one) may be computed in a second step in a row while answers wait."""

    def turns(self, answers: list[Chunk]) -> list[Chunk]:
        """Returns the answers in the order of their turns, if there are too many for one step."""

    def victim(self, running: list[Sequence]) -> Sequence:
        """Returns the sequence of `running` (at least one, in order of arrival) to preempt, so that others can grow."""

    # -- reports -----------------------------------------------------------------------------------------------------

    def waiting(self) -> list[Sequence]:
        """Returns the waiting sequences in about the order in which they will be admitted."""

    def statistics(self) -> list[dict[str, Any]]:
        """Returns what each tenant has and was served, as plain values; empty if the policy knows no tenants."""


class FirstComeFirstServed:
    """Orders by arrival. A preempted sequence keeps its place, so the oldest one always makes progress."""

    def __init__(self, token_budget: int) -> None:
        """`token_budget`: maximum tokens of a step that holds prompts only."""
        self._token_budget = token_budget
        self._waiting: list[Sequence] = []
        """In order of arrival."""

    def submitted(self, sequence: Sequence) -> None:
        bisect.insort(self._waiting, sequence, key=_by_arrival)

    def admitted(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)

    def preempted(self, sequence: Sequence) -> None:
        bisect.insort(self._waiting, sequence, key=_by_arrival)

    def computed(self, plan: Plan) -> None:
        """Does nothing: the order of arrival does not depend on computed tokens."""

    def charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None:
        """Does nothing."""

    def ended(self, sequence: Sequence) -> None:
        if sequence.status < Status.RUNNING:
            self._waiting.remove(sequence)

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:  # noqa: ARG002
        return tuple(self._waiting)

    def contends(self) -> bool:
        return False

    def gives_way(self, sequence: Sequence, running: list[Sequence]) -> Sequence | None:  # noqa: ARG002
        return None

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        return oldest_then_shortest(prompts, budget, self._token_budget)

    def is_urgent(self, prompts: list[Sequence]) -> bool:  # noqa: ARG002
        return False

    def turns(self, answers: list[Chunk]) -> list[Chunk]:
        """See `Policy.turns`. The answers that waited longest come first."""
        return sorted(answers, key=lambda chunk: chunk.sequence.last_step)

    def victim(self, running: list[Sequence]) -> Sequence:
        return running[-1]

    def waiting(self) -> list[Sequence]:
        return list(self._waiting)

    def statistics(self) -> list[dict[str, Any]]:
        return []


def oldest_then_shortest(prompts: list[Sequence], budget: int, token_budget: int) -> Iterable[tuple[Sequence, int]]:
    """Returns shares as `Policy.prefill_shares` does: at least half for the oldest prompt, then the shortest ones.

    So a short prompt does not wait behind a long one, and a long one does not starve. A prompt's length counts in steps
    of `token_budget` tokens. Prompts of one step stay in order of arrival, which is also the order of their lanes, so
    their answers start in consecutive lanes.
    """

    def num_steps(sequence: Sequence) -> int:
        return -(-sequence.num_remaining // token_budget)

    oldest, *others = prompts
    share = budget
    if num_steps(oldest) > 1:
        share = max(budget - sum(sequence.num_remaining for sequence in others), budget // 2)
    others.sort(key=num_steps)
    return [(oldest, share), *((sequence, budget) for sequence in others)]
