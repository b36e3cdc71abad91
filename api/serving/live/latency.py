"""Latencies of the last minute: the time to the first token, and the gaps between tokens."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from api.serving.observer import GAP_BOUNDS, RequestRecord

WINDOW: Final = 60.0
"""Seconds to look back. What is older, or may be, does not count."""
SLOT_SECONDS: Final = 5.0
"""What happened in so many seconds leaves the window together."""
MAX_STARTS: Final = 1000
"""First tokens of a slot and of a tenant that are kept. All further ones are left out."""
MAX_TENANTS: Final = 1000
"""Tenants of a slot that have latencies of their own."""
PERCENTILES: Final = (0.5, 0.95, 0.99)

Percentiles = tuple[float, float, float]
"""p50, p95 and p99, in seconds."""


@dataclass(slots=True)
class Latency:
    """Of some requests. None without any."""

    ttft: Percentiles | None
    itl: Percentiles | None


@dataclass(slots=True)
class _Counts:
    """What was measured of some requests."""

    starts: list[float] = field(default_factory=list)
    """Times to the first token."""
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS) + 1))
    """Numbers of gaps, by GAP_BOUNDS."""


@dataclass(slots=True)
class _Slot:
    begin: float
    counts: dict[tuple[str, str | None], _Counts] = field(default_factory=dict)
    """By model and tenant; None for all tenants."""


class Latencies:
    """An observer. While requests are open, it looks at them when `refresh` is called."""

    def __init__(self, *, by_tenant: bool) -> None:
        """`by_tenant`: whether single tenants are asked for. Without keys, clients choose the names of tenants."""
        self.version = 0
        """Changes with the latencies."""
        self._by_tenant = by_tenant
        self._open: set[RequestRecord] = set()
        self._seen: dict[RequestRecord, tuple[float, list[int]]] = {}
        """When an open request was counted last, and the gaps that it had then."""
        self._slots: deque[_Slot] = deque()

    def began(self, record: RequestRecord) -> None:
        self._open.add(record)

    def ended(self, record: RequestRecord) -> None:
        self._open.discard(record)
        now = trio.current_time()
        self._expire(now)
        self._count(record, now)
        self._seen.pop(record, None)

    def refresh(self) -> None:
        """Count what the open requests have done, and forget what is too old."""
        now = trio.current_time()
        self._expire(now)
        for record in self._open:
            self._count(record, now)

    def of(self, model: str, tenant: str | None) -> Latency:
        """The latencies of a tenant's requests to a model; for None, of all requests to it."""
        counts = [slot.counts[model, tenant] for slot in self._slots if (model, tenant) in slot.counts]
        starts = sorted(start for each in counts for start in each.starts)
        gaps = [sum(column) for column in zip(*(each.gaps for each in counts), strict=True)]
        return Latency(_exact(starts) if starts else None, _estimated(gaps) if any(gaps) else None)

    def _expire(self, now: float) -> None:
        while self._slots and now - self._slots[0].begin > WINDOW:
            self._slots.popleft()
            self.version += 1

    def _count(self, record: RequestRecord, now: float) -> None:
        """Count what the request has done since it was counted last."""
        if not record.model or record.first_output is None or record.last_output is None:
            return
        seen = self._seen.get(record)
        since, before = seen if seen is not None else (record.first_output, [0] * len(record.gaps))
        if seen is not None and record.last_output <= since:
            return
        self._seen[record] = now, list(record.gaps)
        if now - since > WINDOW:
            return
        slot = self._slot(now)
        for tenant in (None, record.tenant) if self._by_tenant else (None,):
            counts = slot.counts.get((record.model, tenant))
            if counts is None:
                if tenant is not None and len(slot.counts) >= MAX_TENANTS:
                    continue
                counts = slot.counts[record.model, tenant] = _Counts()
            if seen is None and len(counts.starts) < MAX_STARTS:
                counts.starts.append(record.first_output - record.arrival)
            counts.gaps = [have + new - old for have, new, old in zip(counts.gaps, record.gaps, before, strict=True)]
        self.version += 1

    def _slot(self, now: float) -> _Slot:
        if not self._slots or now - self._slots[-1].begin >= SLOT_SECONDS:
            self._slots.append(_Slot(now))
        return self._slots[-1]


def _exact(ordered: Sequence[float]) -> Percentiles:
    """The percentiles of sorted numbers, at least one."""
    p50, p95, p99 = (round(ordered[min(int(part * len(ordered)), len(ordered) - 1)], 4) for part in PERCENTILES)
    return p50, p95, p99


def _estimated(counts: Sequence[int]) -> Percentiles:
    """The percentiles of counts by GAP_BOUNDS, at least one. Inside a bucket, values are taken for equally frequent."""
    p50, p95, p99 = (round(_estimate(counts, part * sum(counts)), 4) for part in PERCENTILES)
    return p50, p95, p99


def _estimate(counts: Iterable[int], rank: float) -> float:
    low = 0.0
    for count, high in zip(counts, (*GAP_BOUNDS, GAP_BOUNDS[-1]), strict=True):
        if count and rank <= count:
            return low + (high - low) * rank / count
        rank -= count
        low = high
    return low
