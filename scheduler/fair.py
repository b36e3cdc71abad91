"""Fair shares: tenants with credit go first, and among their sequences the one with the longest prefix in the cache.

Every tenant is charged what was computed for it. It has credit while its service (`scheduler.accounts`) is little more
than the least service of the tenants that wait. This is deficit longest prefix match (DLPM, arXiv 2501.14312) on the
virtual token counter of Sheng et al. (OSDI 2024). Classes (`scheduler.classes`) come before tenants.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any, Final, Protocol

from scheduler.accounts import Account, Standing
from scheduler.classes import Classes
from scheduler.pacing import MIN_CHUNK, SMALLEST_CHUNK
from scheduler.plan import Chunk, Plan
from scheduler.queue import oldest_then_shortest
from scheduler.sequence import Sequence, Status

QUANTUM: Final = 128.0
"""How much more service, in prompt tokens at weight 1, a tenant may have than another one that waits and still have
credit. More of it leaves more room for the longest prefix, less of it keeps the tenants closer together."""
TURN: Final = 8 * QUANTUM
"""If the services of two tenants differ by more, a sequence of the one with more gives way even if it is its only one.
So nobody waits for the end of a long answer. What the sequence was charged at its admission does not count: otherwise a
long prompt would give way before it is computed, again and again."""
HIT_COST: Final = 0.01
"""Cost of a token that was found in the cache. Copying KV takes about a hundredth of the time of computing it."""
MAX_WAIT: Final = 5.0
"""Seconds after which a sequence goes before younger ones of its tenant, whatever prefixes they have."""
NUM_HEADS: Final = 8
"""Tenants, and sequences of each, whose prefixes are compared at a time. A lookup takes some microseconds, and a long
prompt's takes some hundred."""
RECENT: Final = 10.0
"""Seconds for which a tenant counts as present after its last sequence arrived or ended."""
SHORT_SECONDS: Final = 0.25
"""How long a step with prompts of a tenant that runs most sequences may take while other tenants are present."""
MAX_LEFT_OUT: Final = 3
"""Steps with prompts in a row that may leave out prompts that are next by class: those of tenants that run far more
than their share, and those of a class that is due."""
MAX_TENANTS_REPORTED: Final = 64

_by_order = itemgetter(0)

Standings = dict[int, Standing]
"""By class."""


class Costs(Protocol):
    """What tokens cost on this machine; see `scheduler.pacing.Pacer`."""

    @property
    def answer_cost(self) -> float:
        """Cost of a token of an answer, in prompt tokens."""

    def num_tokens(self, seconds: float) -> int:
        """Number of prompt tokens that can be computed in this time."""


class FairShares:
    """See the module. The sequences of one tenant go in order of arrival, longer prefixes first."""

    def __init__(
        self,
        token_budget: int,
        costs: Costs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`token_budget`: maximum tokens of a step that holds prompts only."""
        self._token_budget = token_budget
        self._costs = costs
        self._clock = clock
        self._classes = Classes()
        self._accounts: dict[int, Account] = {}
        """The account of each sequence that has not ended, by request id."""
        self._prepaid: dict[int, int] = {}
        """Tokens of each running sequence that were charged at its admission and are not computed yet."""
        self._entry: dict[int, float] = {}
        """The cost that each running sequence was charged at its admission."""
        self._leaves_out = False
        """Whether the planned step leaves out some prompts."""
        self._num_left_out = 0
        """Computed steps with prompts in a row that left out some."""

    # -- events ------------------------------------------------------------------------------------------------------

    def submitted(self, sequence: Sequence) -> None:
        self._accounts[sequence.request_id] = self._classes.of(sequence.priority).submitted(sequence, self._clock())

    def admitted(self, sequence: Sequence) -> None:
        account = self._accounts[sequence.request_id]
        account.waiting.remove(sequence)
        account.num_running += 1
        # The prompt is charged now. If it were charged when it is computed, one tenant could fill all free places.
        self._prepaid[sequence.request_id] = sequence.num_remaining
        cost = self._entry[sequence.request_id] = sequence.num_remaining + HIT_COST * sequence.num_computed
        account.charge(cost, sequence.weight)

    def preempted(self, sequence: Sequence) -> None:
        account = self._accounts[sequence.request_id]
        self._stop(account, sequence)
        account.add(sequence)

    def computed(self, plan: Plan) -> None:
        if plan.num_prefill > plan.num_fillers:
            self._num_left_out = self._num_left_out + 1 if self._leaves_out else 0
        answer_cost = self._costs.answer_cost
        costs: dict[int, float] = {}
        for number, chunk in enumerate(plan.chunks):
            request_id = chunk.sequence.request_id
            account, each = self._accounts[request_id], answer_cost if number < plan.num_answers else 1.0
            num_tokens = chunk.num_tokens + chunk.num_accepted  # nobody is charged for rejected drafts
            prepaid = min(self._prepaid[request_id], num_tokens)
            self._prepaid[request_id] -= prepaid
            account.charge(each * (num_tokens - prepaid), chunk.sequence.weight)
            costs[account.priority] = costs.get(account.priority, 0.0) + each * num_tokens
        for priority, cost in costs.items():
            self._classes.served(priority, cost)

    def ended(self, sequence: Sequence) -> None:
        account = self._accounts.pop(sequence.request_id)
        if sequence.status is Status.RUNNING:
            self._stop(account, sequence)
        else:
            account.waiting.remove(sequence)
        self._classes.of(account.priority).leaving(account, self._clock())

    def _stop(self, account: Account, sequence: Sequence) -> None:
        account.num_running -= 1
        account.charge(-self._prepaid.pop(sequence.request_id), sequence.weight)
        del self._entry[sequence.request_id]

    def charge(self, tenant: str, weight: float, priority: int, num_tokens: int) -> None:
        """Charge a tenant for tokens that were computed outside of the scheduler's steps."""
        self._classes.of(priority).arriving(tenant, weight, self._clock()).charge(num_tokens, weight)
        self._classes.served(priority, num_tokens)

    # -- admission ---------------------------------------------------------------------------------------------------

    def candidates(self, num_cached: Callable[[Sequence], int]) -> Iterable[Sequence]:
        """See `Policy.candidates`.

        Ranks the first sequences of the first tenants, and ranks again after each admission.
        """
        now = self._clock()
        cached: dict[int, int] = {}
        lines = [_Line(account) for account in self._classes.active if account.waiting]

        def order(line: _Line, sequence: Sequence) -> tuple[float, ...]:
            is_overdue = _is_overdue(sequence, now)
            if not is_overdue and sequence.request_id not in cached:
                cached[sequence.request_id] = num_cached(sequence)
            prefix = 0 if is_overdue else -cached[sequence.request_id]
            return *line.rank, not is_overdue, prefix, line.account.service, sequence.arrival

        def first(line: _Line) -> tuple[float, ...]:
            return *line.rank, not _is_overdue(line.heads[0], now), line.account.service, line.heads[0].arrival

        while lines := [line for line in lines if line.fill()]:
            supplied = self._supplied()
            standings = self._classes.standings()
            taking = set(self._taking(standings))
            for line in lines:
                line.rank = self._rank(line.account, standings, taking)
            compared = heapq.nsmallest(NUM_HEADS, (line for line in lines if line.account is not supplied), key=first)
            if not compared:
                return
            heads = [(order(line, each), line, each) for line in compared for each in line.heads]
            for _, line, sequence in sorted(heads, key=_by_order):
                line.heads.remove(sequence)
                yield sequence
                if sequence.status is Status.RUNNING:
                    break

    def _rank(self, account: Account, standings: Standings, taking: set[Account]) -> tuple[float, ...]:
        """The order of accounts: class, then those that run less than their share, then those with credit.

        An account that may take the place of a running sequence goes before a class that is due and may not. Otherwise
        the latter would make it wait, because admission ends with the first sequence that does not fit.
        """
        rank = self._classes.rank(account.priority)
        standing = standings[account.priority]
        return account not in taking, rank, not _may_gain(account, standing), not _has_credit(account, standing)

    def _supplied(self) -> Account | None:
        """Returns the account that runs most of the sequences beside others, if it has the prompts of two short steps.

        More would only take places that others may need, and in lanes leave gaps between the answers. This holds for a
        tenant far above its share, and beside higher classes. A longer prompt does not count: others of its tenant
        would have to wait for it.
        """
        account = max(self._classes.active, key=attrgetter("num_running"))
        if not self._is_crowded([account]):
            return None
        is_lower = any(each.priority < account.priority for each in self._classes if self._is_present(each))
        if not is_lower and not _is_far_above(account, self._classes.standings()):
            return None
        enough = 2 * self._short_step
        ahead = sum(
            prepaid
            for request_id, prepaid in self._prepaid.items()
            if self._accounts[request_id] is account and prepaid <= enough
        )
        return account if ahead >= enough else None

    def contends(self) -> bool:
        """See `Policy.contends`. If it is true, the sequence that goes first may still have to wait."""
        if any(True for _ in self._taking(self._classes.standings())):
            return True
        most: dict[int, float] = {}
        """The most service of the accounts that run, by class."""
        for account in self._classes.active:
            if account.num_running:
                most[account.priority] = max(most.get(account.priority, 0.0), account.service)
        waiting = (account for account in self._classes.active if account.waiting)
        return any(most.get(account.priority, 0.0) - account.service > TURN for account in waiting)

    def _taking(self, standings: Standings) -> Iterator[Account]:
        """Yields the accounts whose waiting sequences take the place of a running one, by their class or share."""
        displacing, active = self._classes.displacing(), self._classes.active
        above = {
            account.priority
            for account in active
            if account.num_running and account.num_running - 1 >= standings[account.priority].fair_share(account)
        }
        """The classes in which an account can give a place away and keep its share."""
        for account in active:
            if account.waiting and (
                account.priority in displacing
                or (account.priority in above and _may_gain(account, standings[account.priority]))
            ):
                yield account

    def gives_way(self, sequence: Sequence, running: list[Sequence]) -> Sequence | None:
        """See `Policy.gives_way`. Takes the latest sequence of the account that `_excess` finds."""
        account, standings = self._accounts[sequence.request_id], self._classes.standings()
        latest = {id(holder): (holder, each) for each in running for holder in [self._account(each)]}
        yielding = [pair for pair in latest.values() if self._yields(*pair, account, standings)]
        if not yielding:
            return None
        return max(yielding, key=lambda pair: self._excess(pair[0], standings))[1]

    def _yields(self, holder: Account, latest: Sequence, account: Account, standings: Standings) -> bool:
        """Whether the latest running sequence of `holder` gives way to a waiting one of `account`."""
        if holder.priority != account.priority:
            return self._classes.rank(holder.priority) > self._classes.claim(account.priority)
        if holder is account:
            return False
        if holder.service - account.service > TURN + self._entry[latest.request_id] / latest.weight:
            return True
        is_above = holder.num_running - 1 >= standings[holder.priority].fair_share(holder)
        return is_above and _may_gain(account, standings[account.priority])

    def victim(self, running: list[Sequence]) -> Sequence:
        """See `Policy.victim`. Takes the latest sequence of the account that `_excess` finds."""
        standings = self._classes.standings()
        latest = {id(account): (account, each) for each in running for account in [self._account(each)]}
        return max(latest.values(), key=lambda pair: self._excess(pair[0], standings))[1]

    def _excess(self, account: Account, standings: Standings) -> tuple[float, ...]:
        """The order of victims: the lowest class, and in it the tenant that runs most compared with its share."""
        share = standings[account.priority].fair_share(account)
        return self._classes.rank(account.priority), account.num_running / share, account.service

    # -- steps -------------------------------------------------------------------------------------------------------

    def prefill_shares(self, prompts: list[Sequence], budget: int) -> Iterable[tuple[Sequence, int]]:
        """See `Policy.prefill_shares`.

        Prompts of lower classes wait. So do those of a tenant that runs far more than its share, because a short prompt
        beside them would take as long as all of them, and those of a class that is due while an account above it has
        less than its share; but not for more than MAX_LEFT_OUT steps. Beside a tenant that runs most of the sequences,
        steps stay short, because others may come at any time.
        """
        first, self._leaves_out = self._next_prompts(prompts)
        if not self._is_crowded([self._account(each) for each in first]):
            return oldest_then_shortest(first, budget, self._token_budget)
        budget = min(budget, self._short_step)
        return _limited(oldest_then_shortest(first, budget, self._token_budget), budget)

    def _next_prompts(self, prompts: list[Sequence]) -> tuple[list[Sequence], bool]:
        """The prompts that the next step may compute, and whether it leaves out others that are next by class."""
        classes, standings, whole = self._classes, self._classes.standings(), Standing.of(self._classes.active)
        accounts = [self._account(each) for each in prompts]
        by_class = [classes.rank(each.priority) for each in accounts]
        if self._num_left_out < MAX_LEFT_OUT:
            ranks = [
                (classes.rank(each.priority, is_light=_is_below(each, whole)), _is_far_above(each, standings))
                for each in accounts
            ]
        else:
            ranks = [(rank, False) for rank in by_class]
        best, best_class = min(ranks), min(by_class)
        first = [each for each, rank in zip(prompts, ranks, strict=True) if rank == best]
        leaves_out = any(
            rank != best and of_class == best_class for rank, of_class in zip(ranks, by_class, strict=True)
        )
        return first, leaves_out

    @property
    def _short_step(self) -> int:
        """The tokens of a short step with prompts."""
        return max(self._costs.num_tokens(SHORT_SECONDS), MIN_CHUNK)

    def _is_crowded(self, accounts: Iterable[Account]) -> bool:
        """Whether one of these accounts runs most of all sequences while others are present."""
        active = self._classes.active
        num_running = sum(account.num_running for account in active)
        if not any(2 * account.num_running > num_running for account in accounts):
            return False
        return len(active) > 1 or any(each.is_idle and self._is_present(each) for each in self._classes)

    def _is_present(self, account: Account) -> bool:
        return not account.is_idle or self._clock() - account.last_active < RECENT

    def is_urgent(self, prompts: list[Sequence]) -> bool:
        """See `Policy.is_urgent`: if a lower class or a tenant far above its share runs beside the first prompts.

        Prompts are never urgent beside a higher class, even if theirs is due: it is owed a part of the service, but no
        short wait. Beside a lower class, only prompts of accounts that have less than their share are urgent. Otherwise
        a flood's own prompts would be, and a stranger who comes after two steps of them would have to wait for the
        answers, too.
        """
        standings, whole = self._classes.standings(), Standing.of(self._classes.active)
        first = {self._account(each) for each in self._next_prompts(prompts)[0]}
        others = [each for each in self._classes.active if each.num_running and each not in first]
        highest = min(account.priority for account in first)
        is_beside_higher = any(each.priority < highest for each in others)
        if is_beside_higher or any(_is_far_above(each, standings) for each in first):
            return False
        is_light = all(_is_below(account, whole) for account in first)
        return any((is_light and each.priority > highest) or _is_far_above(each, standings) for each in others)

    def turns(self, answers: list[Chunk]) -> list[Chunk]:
        """See `Policy.turns`. Takes one of each tenant in turn, by weight, those that waited longest first.

        An answer moves forward the longer it waits, so that even a tenant of a small weight gets its turn.
        """
        places: dict[int, int] = {}
        oldest_first = sorted(answers, key=lambda chunk: chunk.sequence.last_step)
        latest = oldest_first[-1].sequence.last_step

        def order(chunk: Chunk) -> tuple[float, ...]:
            account, last_step = self._account(chunk.sequence), chunk.sequence.last_step
            place = places[id(account)] = places.get(id(account), 0) + 1
            share = account.weight * (1 + latest - last_step)
            return self._classes.rank(account.priority), place / share, last_step

        return [chunk for _, chunk in sorted([(order(chunk), chunk) for chunk in oldest_first], key=_by_order)]

    def _account(self, sequence: Sequence) -> Account:
        return self._accounts[sequence.request_id]

    # -- reports -----------------------------------------------------------------------------------------------------

    def waiting(self) -> list[Sequence]:
        """See `Policy.waiting`. An estimate: prefixes and later arrivals change the order."""
        places = [
            ((self._classes.rank(account.priority), place / account.weight, sequence.arrival), sequence)
            for account in self._classes.active
            for place, sequence in enumerate(account.waiting, 1)
        ]
        return [sequence for _, sequence in sorted(places, key=_by_order)]

    def statistics(self) -> list[dict[str, Any]]:
        """See `Policy.statistics`. The tenants that have sequences, those with most of them first."""
        active = sorted(self._classes.active, key=lambda account: -(account.num_running + len(account.waiting)))
        standings = self._classes.standings()
        return [
            {
                "tenant": account.tenant,
                "priority": account.priority,
                "running": account.num_running,
                "waiting": len(account.waiting),
                "weight": account.weight,
                "service": round(account.service, 1),
                "credit": _credit(account, standings),
            }
            for account in active[:MAX_TENANTS_REPORTED]
        ]


def _is_overdue(sequence: Sequence, now: float) -> bool:
    return now - sequence.submitted_at > MAX_WAIT


def _has_credit(account: Account, standing: Standing) -> bool:
    return account.service <= standing.least_service + QUANTUM


def _may_gain(account: Account, standing: Standing) -> bool:
    """Whether the account has credit and may run one more sequence within its share."""
    return _has_credit(account, standing) and _is_below(account, standing)


def _credit(account: Account, standings: Standings) -> float | None:
    """How much more service the account may get and still have credit; None if no account of its class waits."""
    least = standings[account.priority].least_service
    return round(least + QUANTUM - account.service, 1) if math.isfinite(least) else None


def _is_below(account: Account, standing: Standing) -> bool:
    """Whether the account may run one more sequence within its share."""
    return account.num_running + 1 <= standing.fair_share(account)


def _is_far_above(account: Account, standings: Standings) -> bool:
    share = standings[account.priority].fair_share(account)
    return account.num_running - share >= max(2.0, share / 4)


def _limited(shares: Iterable[tuple[Sequence, int]], budget: int) -> Iterator[tuple[Sequence, int]]:
    """Yields shares of `budget` tokens in all, without a small rest for the last prompt."""
    for sequence, share in shares:
        num_tokens = min(share, sequence.num_remaining, budget)
        if num_tokens < min(SMALLEST_CHUNK, sequence.num_remaining):
            num_tokens = 0
        budget -= num_tokens
        yield sequence, num_tokens


class _Line:
    """The waiting sequences of an account, and those at its head that are ranked."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.heads: list[Sequence] = []
        self.rank: tuple[float, ...] = ()
        self._rest = iter(tuple(account.waiting))

    def fill(self) -> bool:
        """Take as many heads as are missing. Returns whether there are any."""
        while len(self.heads) < NUM_HEADS and (sequence := next(self._rest, None)) is not None:
            self.heads.append(sequence)
        return bool(self.heads)
