"""A token bucket: how much of something may be used in a minute."""

from math import floor
from typing import Final

MINUTE: Final = 60.0
_NOTHING: Final = 1e-6
"""Seconds that are lost by rounding."""


class Bucket:
    """As much as may be used in a minute. It is refilled all the time, at the rate that fills it in a minute.

    This is the generic cell rate algorithm: its whole state is the time at which it will be full.
    """

    __slots__ = ("_full_at", "size")

    def __init__(self, size: int) -> None:
        """`size`: at least 1."""
        self.size = size
        self._full_at = float("-inf")

    def take(self, num: float, now: float) -> None:
        """Use this much, even if there is less. What is missing must be refilled before there is room again."""
        self._full_at = max(self._full_at, now) + num * MINUTE / self.size

    def give_back(self, num: float) -> None:
        """Undo a `take`."""
        self._full_at -= num * MINUTE / self.size

    def seconds_until(self, num: float, now: float) -> float:
        """The time until there is room for this much; 0 if there is room now. `num`: at most the size."""
        seconds = self.seconds_until_full(now) - (self.size - num) * MINUTE / self.size
        return seconds if seconds > _NOTHING else 0.0

    def seconds_until_full(self, now: float) -> float:
        seconds = self._full_at - now
        return seconds if seconds > _NOTHING else 0.0

    def is_full(self, now: float) -> bool:
        return not self.seconds_until_full(now)

    def room(self, now: float) -> int:
        """How much there is, in whole numbers; 0 if more was used than there was."""
        free = self.size - (self.seconds_until_full(now) - _NOTHING) * self.size / MINUTE
        return min(max(floor(free), 0), self.size)

    def used(self, now: float) -> int:
        """How much is missing until it is full. It may be more than the size."""
        return round(self.seconds_until_full(now) * self.size / MINUTE)


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `6ms`, `1.5s` or `1m30s`."""
    milliseconds = round(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
