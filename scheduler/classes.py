"""Classes of sequences: a lower number goes first, and lower classes are owed a part of the service of higher ones."""

from collections.abc import Iterator
from typing import Final

from scheduler.accounts import Account, Accounts, Standing

GUARANTEED: Final = 0.1
"""A class that has sequences is owed this part of the service of each class above it."""
DUE: Final = 64.0
"""Service that a class must be owed before it goes first, in prompt tokens: one chunk."""
MAX_OWED: Final = 2048.0


class Classes:
    """The accounts of all classes, and what the lower classes are owed."""

    def __init__(self) -> None:
        self._accounts: dict[int, Accounts] = {}
        self._owed: dict[int, float] = {}
        self._due: set[int] = set()
        """The classes that go first until they have got what they are owed."""

    def __iter__(self) -> Iterator[Account]:
        """Yields all accounts."""
        return (account for accounts in self._accounts.values() for account in accounts)

    @property
    def active(self) -> list[Account]:
        """The accounts that have sequences."""
        return [account for accounts in self._accounts.values() for account in accounts.active]

    def of(self, priority: int) -> Accounts:
        accounts = self._accounts.get(priority)
        if accounts is None:
            accounts = self._accounts[priority] = Accounts(priority)
        return accounts

    def standings(self) -> dict[int, Standing]:
        return {priority: accounts.standing() for priority, accounts in self._accounts.items()}

    def served(self, priority: int, cost: float) -> None:
        """Note that something of this cost was computed for a class."""
        for other, accounts in self._accounts.items():
            if other > priority and accounts.active:
                self._owe(other, GUARANTEED * cost)
        self._owe(priority, -cost)

    def _owe(self, priority: int, cost: float) -> None:
        owed = self._owed[priority] = min(max(self._owed.get(priority, 0.0) + cost, 0.0), MAX_OWED)
        if owed >= DUE:
            self._due.add(priority)
        elif not owed:
            self._due.discard(priority)

    def rank(self, priority: int, *, is_light: bool = False) -> int:
        """Returns the place of a class in the order of classes.

        A class that is due goes first, but `is_light` sequences of the classes above it go before it.
        """
        first_due = min(self._due, default=-1)
        if is_light and priority < first_due:
            return priority - first_due - 1
        return -1 if priority in self._due else priority

    def displacing(self) -> set[int]:
        """Returns the classes that may take the place of a running sequence of a lower class."""
        lowest = max((self.rank(each) for each, accounts in self._accounts.items() if accounts.num_running), default=-1)
        return {priority for priority in self._accounts if self.claim(priority) < lowest}

    def claim(self, priority: int) -> int:
        """As `rank`, for a sequence that would take the place of a running one.

        A class that is due takes the place of a higher class only if nothing of it runs.
        """
        return priority if self._accounts[priority].num_running else self.rank(priority)
