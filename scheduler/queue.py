"""Who is next: the order of admission, the order of prefill, and the victim of a preemption.

The scheduler decides how much fits into a step and into memory. Which sequence goes first is a policy's decision. The
scheduler calls a policy's events for everything that happens to a sequence, so a policy can keep accounts.
"""

import bisect
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Protocol

from scheduler.plan import Plan
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
        """The sequence was a candidate and runs now. `num_computed` tokens of it were found in memory."""

    def preempted(self, sequence: Sequence) -> None:
        """The sequence ran, lost its memory and waits again."""

    def computed(self, plan: Plan) -> None:
        """A step has computed these chunks. Called before any of their sequences ends."""

    def ended(self, sequence: Sequence) -> None:
        """The sequence waited or ran, as its status still says. It is over now, for whatever reason."""

    # -- decisions ---------------------------------------------------------------------------------------------------

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        """The waiting sequences, in the order in which they may be admitted.

        The scheduler calls `admitted` while it iterates. It skips a candidate whose prefix is being computed or read
        from the disk, and stops at the first one that does not fit: smaller ones behind it never overtake it.
        `num_cached` looks up how many tokens of a sequence are in memory now, which costs some microseconds.
        """

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        """The order in which `prompts` (at least one, in order of arrival) are computed in this step.

        The number is the most tokens that this step computes of the sequence. What one leaves of the `budget`, the next
        may use; so the shares may add up to more than the budget.
        """

    def victim(self, running: list[Sequence]) -> Sequence:
        """The sequence of `running` (at least one, in order of arrival) that loses its memory to the others."""


class FirstComeFirstServed:
    """Orders by arrival. A preempted sequence keeps its place, so the oldest one always advances."""

    def __init__(self, token_budget: int) -> None:
        """`token_budget`: tokens of a step that holds prompts only."""
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
        """The order of arrival does not depend on it."""

    def ended(self, sequence: Sequence) -> None:
        if sequence.status < Status.RUNNING:
            self._waiting.remove(sequence)

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:  # noqa: ARG002
        return tuple(self._waiting)

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        """The oldest prompt may use half of the budget. The others follow, those first that need the fewest steps.

        So a short question does not wait behind a long prompt, and the long prompt does not starve. Prompts that fit
        into one step stay in order of arrival: their answers then begin side by side, as lanes are given out in that
        order, too.
        """
        oldest, *others = prompts
        share = budget
        if self._num_steps(oldest) > 1:
            share = max(budget - sum(sequence.num_remaining for sequence in others), budget // 2)
        others.sort(key=self._num_steps)
        return [(oldest, share), *((sequence, budget) for sequence in others)]

    def _num_steps(self, sequence: Sequence) -> int:
        """Steps of prompts alone that compute the rest of the sequence."""
        return -(-sequence.num_remaining // self._token_budget)

    def victim(self, running: list[Sequence]) -> Sequence:
        return running[-1]
