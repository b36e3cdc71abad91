"""How many sequences of lines run at once, for each model."""

from collections.abc import Callable

import trio


def num_beside(num_others: int, max_seqs: int) -> int:
    """Returns how many sequences of lines may run beside this many of clients, if the engine computes `max_seqs`.

    Clients have the higher classes, but lines that are being computed slow each of their steps. At least one, so that
    a batch always goes on.
    """
    return max(max_seqs - num_others, 1)


class Room:
    """Lets lines in, in the order in which they ask, while there is room for their sequences."""

    def __init__(self, capacity: Callable[[int], int]) -> None:
        """`capacity`: how many sequences may run now, if this many run. A line with more runs alone."""
        self._capacity = capacity
        self._used = 0
        self._turn = trio.Lock()
        self._left = trio.Event()

    async def enter(self, num_sequences: int) -> None:
        """Wait until there is room, and take it."""
        async with self._turn:
            while self._used and self._used + num_sequences > self._capacity(self._used):
                await self._left.wait()
            self._used += num_sequences

    def leave(self, num_sequences: int) -> None:
        self._used -= num_sequences
        self._left.set()
        self._left = trio.Event()
