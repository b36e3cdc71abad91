"""Accounts of tenants: what each was served, and how many of its sequences wait and run.

Service is the cost of everything that was computed for a tenant, in prompt tokens, divided by its weight: the virtual
token counter of Sheng et al. (OSDI 2024).
"""

import bisect
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Self

from scheduler.sequence import Sequence

MAX_ACCOUNTS: Final = 1024
"""Accounts of a class to remember. Beyond it, some without sequences are forgotten, those with the least service first.
What they would have to wait for is then forgotten, too."""

_by_arrival = attrgetter("arrival")


@dataclass(eq=False, slots=True)
class Account:
    """One tenant's sequences of one class."""

    tenant: str
    weight: float
    priority: int
    service: float = 0.0
    waiting: list[Sequence] = field(default_factory=list)
    """In order of arrival."""
    num_running: int = 0
    last_active: float = 0.0
    """When its latest sequence arrived or ended, on the policy's clock."""

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.num_running

    def charge(self, cost: float, weight: float) -> None:
        """Add a cost in prompt tokens; a negative one is a refund, at the weight of the charge."""
        self.service += cost / weight

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        bisect.insort(self.waiting, sequence, key=_by_arrival)


@dataclass(frozen=True, slots=True)
class Standing:
    """The sums over the accounts of one class or of all, which decisions about single accounts need."""

    num_running: int
    weight: float
    """The weights of all tenants that have sequences."""
    least_service: float
    """Of the tenants that have waiting sequences; infinity if there are none."""

    @classmethod
    def of(cls, active: Collection[Account]) -> Self:
        """`active`: the accounts that have sequences."""
        return cls(
            sum(account.num_running for account in active),
            sum(account.weight for account in active),
            min((account.service for account in active if account.waiting), default=math.inf),
        )

    def fair_share(self, account: Account) -> float:
        """How many of the running sequences the account may have by its weight; at least 1."""
        return max(1.0, self.num_running * account.weight / self.weight) if self.weight else 1.0


class Accounts:
    """The accounts of one class."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self._by_tenant: dict[str, Account] = {}
        self._active: dict[str, Account] = {}
        """The accounts that have sequences. Each step looks at them only, not at all that are remembered."""
        self._level = 0.0
        """The service of the account that became idle last."""

    def __iter__(self) -> Iterator[Account]:
        return iter(self._by_tenant.values())

    @property
    def active(self) -> Collection[Account]:
        """The accounts that have sequences."""
        return self._active.values()

    @property
    def num_running(self) -> int:
        return sum(account.num_running for account in self.active)

    def standing(self) -> Standing:
        return Standing.of(self.active)

    def submitted(self, sequence: Sequence, now: float) -> Account:
        """Let a new sequence wait. Returns its account."""
        account = self.arriving(sequence.tenant, sequence.weight, now)
        account.add(sequence)
        self._active[account.tenant] = account
        return account

    def arriving(self, tenant: str, weight: float, now: float) -> Account:
        """Returns the account of a tenant that asks for more. If nothing of it waits, its service is lifted.

        It is lifted to the least service of those that wait, else of those that run. So a tenant cannot save up service
        while it asks for none.
        """
        account = self._by_tenant.get(tenant)
        if account is None:
            self._forget_some()
            account = self._by_tenant[tenant] = Account(tenant, weight, self.priority)
        account.weight, account.last_active = weight, now
        if not account.waiting:
            others = [each for each in self.active if each is not account]
            peers = [each for each in others if each.waiting] or others
            level = min((each.service for each in peers), default=self._level)
            account.service = max(account.service, level)
        return account

    def leaving(self, account: Account, now: float) -> None:
        """Note that a sequence of the account has ended."""
        account.last_active = now
        if account.is_idle:
            del self._active[account.tenant]
            self._level = account.service

    def _forget_some(self) -> None:
        if len(self._by_tenant) >= MAX_ACCOUNTS:
            idle = sorted((account for account in self if account.is_idle), key=attrgetter("service"))
            for account in idle[: MAX_ACCOUNTS // 4]:
                del self._by_tenant[account.tenant]
