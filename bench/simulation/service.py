"""What each tenant of a simulation was served."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bench.simulation.simulator import Simulator, Step, Tenant


@dataclass(frozen=True, slots=True)
class Curves:
    """The service of each tenant over time, for a plot."""

    times: list[float]
    served: dict[str, list[float]]
    """Tokens computed up to each time, by tenant."""
    weights: dict[str, float]
    bound: float
    """Maximum difference of the service of two tenants, each divided by its weight."""


def curves_of(simulator: Simulator, tenants: Sequence[Tenant], bound: float) -> Curves:
    served = {each.name: list(accumulate(service(simulator.steps, each.name))) for each in tenants}
    return Curves([step.end for step in simulator.steps], served, {each.name: each.weight for each in tenants}, bound)


def service(steps: Sequence[Step], tenant: str, weight: float = 1.0) -> list[float]:
    """The tokens of a tenant that each step computed, divided by its weight.

    On this machine a token of an answer in a full step takes as long as a token of a prompt, so both count the same.
    """
    return [(step.prefill.get(tenant, 0) + step.decode.get(tenant, 0)) / weight for step in steps]


def most_overtaken(simulator: Simulator, tenants: Sequence[Tenant]) -> float:
    """Returns the most service that another tenant got beyond a request's own tenant while that request waited.

    Each tenant's service is divided by its weight. A request waits from its submission to its first token. If this is
    bounded, nobody starves: the service of all others during a wait is at most what the tenant's own earlier requests
    take, in proportion to the weights, and the bound for each other tenant.
    """
    ends = [step.end for step in simulator.steps]
    sums = {each.name: [0.0, *accumulate(service(simulator.steps, each.name, each.weight))] for each in tenants}
    most = 0.0
    for request in simulator.requests:
        # The step that runs when the request arrives cannot be changed any more.
        first = bisect_right(ends, request.submitted) + 1
        last = len(ends) if request.first is None else bisect_right(ends, request.first)
        if first < last:
            gained = {name: total[last] - total[first] for name, total in sums.items()}
            most = max(most, *(other - gained[request.tenant] for other in gained.values()))
    return most
