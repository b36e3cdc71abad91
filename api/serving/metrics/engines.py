"""Adds up the counters of engines. An engine counts from zero, so each restart would lose what was counted before."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from scheduler.messages import Report

COUNTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "scheduler": (
        *("steps", "step_seconds", "prefill_tokens", "decode_tokens", "failed_steps", "preemptions"),
        *("num_drafts", "draft_tokens", "accepted_draft_tokens"),
    ),
    "cache": ("hit_tokens", "loaded_tokens", "evicted_pages", "merged_pages"),
    "memory": ("grows", "shrinks", "failed_openings"),
}
"""The counters of a Report that are added up, by its part."""


class GrowingTotal:
    """The sum of a counter over its restarts."""

    __slots__ = ("_last", "_source", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self._source: Hashable = None
        self._last = 0.0

    def update(self, source: Hashable, value: float) -> None:
        """`source`: what counts, such as the process. Another one, or a smaller value, means that it began again."""
        if source != self._source or value < self._last:
            self._last = 0.0
        self.total += value - self._last
        self._source, self._last = source, value


class EngineTotals:
    """The totals of one model's engines since the server started."""

    def __init__(self) -> None:
        self._totals = {name: GrowingTotal() for names in COUNTERS.values() for name in names}
        self._accepted: list[GrowingTotal] = []
        self._drafted: dict[tuple[str, str], GrowingTotal] = {}

    def update(self, pid: int, report: Report) -> None:
        """Add the newest statistics of the engine with this process id. Statistics that come twice count once."""
        parts: dict[str, dict[str, Any]] = {
            "scheduler": report.scheduler,
            "cache": report.cache,
            "memory": report.memory,
        }
        for part, names in COUNTERS.items():
            for name in names:
                self._totals[name].update(pid, parts[part].get(name, 0))
        for source, counts in report.scheduler.get("draft_sources", {}).items():
            good = counts["accepted_draft_tokens"]
            for result, value in (("accepted", good), ("rejected", counts["draft_tokens"] - good)):
                self._drafted.setdefault((source, result), GrowingTotal()).update(pid, value)
        accepted = report.scheduler.get("accepted_per_position", ())
        self._accepted += [GrowingTotal() for _ in accepted[len(self._accepted) :]]
        for total, value in zip(self._accepted, accepted, strict=False):
            total.update(pid, value)

    @property
    def accepted_per_position(self) -> list[float]:
        """Accepted drafted tokens by their position in a draft, from 0."""
        return [each.total for each in self._accepted]

    @property
    def drafted(self) -> dict[tuple[str, str], float]:
        """Drafted tokens by what drafted them, and by `accepted` or `rejected`."""
        return {key: each.total for key, each in self._drafted.items()}

    def __getitem__(self, name: str) -> float:
        return self._totals[name].total
