"""A histogram of plain numbers. prometheus_client's own cannot take counts that were collected elsewhere."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts observations in buckets."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the upper bounds of the buckets, in order. One more bucket has no bound."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations that are counted already, by the same bounds. `total`: their sum."""
        self._counts = [have + more for have, more in zip(self._counts, counts, strict=True)]
        self._sum += total

    @property
    def sum(self) -> float:
        return self._sum

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' cumulative buckets: each bound as text, and the number of observations up to it."""
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))
