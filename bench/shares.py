"""Measures of fairness: pure arithmetic. Service is counted in tokens that were computed."""

from collections.abc import Sequence
from itertools import accumulate


def jain(shares: Sequence[float]) -> float:
    """Returns Jain's index: 1 if all shares are equal, 1/n if one of n has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def largest_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the largest difference between the service of two tenants in any interval.

    `one` and `other` are their service in each step, divided by their weights.
    """
    differences = [0.0, *accumulate(mine - theirs for mine, theirs in zip(one, other, strict=True))]
    return max(differences) - min(differences)


def service_bound(longest_prompt: float, running_tokens: float, quantum: float) -> float:
    """Returns the bound of DLPM (arXiv 2501.14312) on the gap between two backlogged tenants: 2 * (U + Q).

    U is the most service between a tenant's admission and its next charge that can stop it: a prompt, and the tokens
    of all answers that may run at once. Q is the quantum that refills a tenant's credit. All are divided by the smaller
    weight. Without a quantum it is twice the bound of VTC (Sheng et al., OSDI 2024), which takes the maximum of both.
    """
    return 2 * (longest_prompt + running_tokens + quantum)
