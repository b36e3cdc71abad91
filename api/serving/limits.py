"""The limits of tenants and of the whole server. Plain accounting, with an injected clock."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from api.serving.allowance import Allowance, Quota, refuse
from api.serving.bucket import duration
from api.serving.tickets import Ticket
from api.tenants.tenant import Limits, Tenant

MAX_ALLOWANCES: Final = 10_000
"""Allowances that are kept. Without keys, clients choose the names of tenants, so there may be any number."""


class Limiter:
    """The allowances of one server: one for all tenants together, and one for each tenant that has used it lately."""

    def __init__(
        self,
        *,
        total: Limits = Limits(),  # noqa: B008 - it is immutable
        default: Limits = Limits(),  # noqa: B008
        clock: Callable[[], float] = trio.current_time,
        max_allowances: int = MAX_ALLOWANCES,
    ) -> None:
        """`total`: the limits of all tenants together. `default`: those of a tenant without limits of its own."""
        self._total_limits = total
        self._default = default
        self._clock = clock
        self._max_allowances = max_allowances
        self._total: Allowance | None = None
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
        """By the tenants' names. The ones used last are at the end."""

    @property
    def num_allowances(self) -> int:
        return len(self._allowances)

    @property
    def is_full(self) -> bool:
        """Whether the limits of all tenants together would refuse the next request."""
        now = self._clock()
        return any(self._all(now).refusals(1, now))

    def enter(self, tenant: Tenant, num_sequences: int = 1, param: str = "n") -> Ticket:
        """Count a new request. `param`: its field that asks for several sequences.

        Raises ApiError 429 if it exceeds a limit now, 400 if it always would.
        """
        now = self._clock()
        allowances = self._allowance(tenant, now), self._all(now)
        for allowance in allowances:
            allowance.check_size(num_sequences, param)
        refuse([(each, why) for each in allowances for why in each.refusals(num_sequences, now)])
        return Ticket(allowances, num_sequences, self._clock)

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """The headers `x-ratelimit-...` of an answer, with OpenAI's names. A limit that is not set has none."""
        now = self._clock()
        allowances = self._allowance(tenant, now), self._all(now)
        kinds = zip(*(allowance.request_quotas(now) for allowance in allowances), strict=True)
        requests = next((quota for kind in kinds if (quota := _tightest(kind)) is not None), None)
        tokens = _tightest([allowance.token_quota(now) for allowance in allowances])
        return _headers("requests", requests) | _headers("tokens", tokens)

    def _all(self, now: float) -> Allowance:
        if self._total is None:
            self._total = Allowance("for this server", self._total_limits, now)
        return self._total

    def _allowance(self, tenant: Tenant, now: float) -> Allowance:
        self._forget_idle(now)
        limits = self._limits_of(tenant)
        allowance = self._allowances.get(tenant.name)
        if allowance is None:
            allowance = self._allowances[tenant.name] = Allowance("for you", limits, now)
        elif allowance.limits != limits:  # they were edited
            allowance.limits = limits
        self._allowances.move_to_end(tenant.name)
        return allowance

    def _limits_of(self, tenant: Tenant) -> Limits:
        own, default = tenant.limits, self._default
        return Limits(
            default.waiting if own.waiting is None else own.waiting,
            default.concurrent if own.concurrent is None else own.concurrent,
            default.requests_per_minute if own.requests_per_minute is None else own.requests_per_minute,
            default.tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute,
        )

    def _forget_idle(self, now: float) -> None:
        """Look at two allowances, so that more allowances become idle and leave than arrive."""
        for name in [name for name, _ in zip(self._allowances, range(2), strict=False)]:
            if self._allowances[name].is_idle(now):
                del self._allowances[name]
            else:
                self._allowances.move_to_end(name)
        if len(self._allowances) >= self._max_allowances:  # a new name costs a client nothing anyway
            unused = next((name for name, allowance in self._allowances.items() if not allowance.concurrent), None)
            if unused is not None:
                del self._allowances[unused]


def _tightest(quotas: list[Quota | None] | tuple[Quota | None, ...]) -> Quota | None:
    return min((quota for quota in quotas if quota is not None), key=lambda quota: quota.remaining, default=None)


def _headers(unit: str, quota: Quota | None) -> dict[str, str]:
    if quota is None:
        return {}
    return {
        f"x-ratelimit-limit-{unit}": str(quota.limit),
        f"x-ratelimit-remaining-{unit}": str(quota.remaining),
        f"x-ratelimit-reset-{unit}": duration(quota.reset),
    }


HEADERS: Final = tuple(
    f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
