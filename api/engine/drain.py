"""How fast requests leave, measured, so that a refused client knows when to try again."""

from collections import deque
from math import ceil
from typing import Final

MIN_RETRY: Final = 1
MAX_RETRY: Final = 60
"""Bounds of the header Retry-After, in seconds."""
MEASURED: Final = 32
"""The number of departures that are measured."""


class DrainRate:
    """The rate at which something empties, from its last departures."""

    def __init__(self, now: float) -> None:
        """Times are in seconds, on any one clock."""
        self._times = deque([now], MEASURED + 1)
        """When the measurement began, then the departures. Or only departures."""

    def restart(self, now: float) -> None:
        """Begin to measure: it was empty until now."""
        self._times = deque([now], MEASURED + 1)

    def left(self, now: float) -> None:
        """Record a departure."""
        self._times.append(now)

    def seconds_until(self, num: int, now: float) -> float:
        """The time in which this many leave. It grows while nothing leaves."""
        elapsed = max(now - self._times[0], 0.0)
        return num * elapsed / max(len(self._times) - 1, 1)


def retry_after(seconds: float) -> int:
    """The value of the header Retry-After for a time to wait."""
    return min(max(ceil(seconds), MIN_RETRY), MAX_RETRY)
