"""What an engine shows of itself while somebody watches: the tokens of each step by tenant, pages, queue and memory.

It exists only meanwhile. It records each step, and sends a Snapshot at most four times a second, if anything changed.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from kvcache.tree import PAGE_TOKENS
from scheduler.elastic import Elastic
from scheduler.embedder import Embedder
from scheduler.messages import Row, Snapshot
from scheduler.plan import Plan
from scheduler.scheduler import Scheduler

INTERVAL: Final = 0.25
"""Least seconds between two Snapshots."""
MAX_STEPS: Final = 32
"""Steps of a Snapshot. If there were more, it has the newest ones."""
COST_SHARE: Final = 0.01
"""Most of the engine's time that Snapshots may take. The map of very large memory then comes less often."""


class Live:
    """Watches the parts of an engine. All times are in seconds."""

    def __init__(
        self,
        scheduler: Scheduler,
        embedder: Embedder | None,
        elastic: Elastic | None,
        send: Callable[[Snapshot], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._embedder = embedder
        self._elastic = elastic
        self._send = send
        self._clock = clock
        self._steps: deque[tuple[float, list[Row]]] = deque(maxlen=MAX_STEPS)
        self._tokens: dict[str, tuple[int, int]] = {}
        self._due = clock()
        self._is_stale = True
        """Whether anything may have changed since the last Snapshot."""
        self._shown: tuple[dict[str, Any], ...] = ()
        """What the last Snapshot said of pages, queue and memory."""

    @property
    def patience(self) -> float | None:
        """Seconds after which `look` must be called even if nothing happens. None if there is no need."""
        return max(0.0, self._due - self._clock()) if self._is_stale else None

    def computed(self, plan: Plan, seconds: float) -> None:
        """Record a step that was computed."""
        parts = (
            (chunk.sequence.tenant, 0, chunk.num_tokens, len(chunk.drafts), chunk.num_accepted)
            if number < plan.num_answers
            else (chunk.sequence.tenant, chunk.num_tokens, 0, len(chunk.drafts), chunk.num_accepted)
            for number, chunk in enumerate(plan.chunks)
        )
        self._record(seconds, parts)

    def read(self, texts: Iterable[tuple[str, int]], seconds: float) -> None:
        """Record a batch of texts to embed. `texts`: the tenant and the tokens of each."""
        self._record(seconds, ((tenant, num_tokens, 0, 0, 0) for tenant, num_tokens in texts))

    def _record(self, seconds: float, parts: Iterable[Row]) -> None:
        rows: dict[str, Row] = {}
        for part in parts:
            tenant, prompt, answer, drafted, accepted = part
            before = rows.get(tenant)
            if before is None:
                rows[tenant] = part
            else:
                _, prompts, answers, drafts, hits = before
                rows[tenant] = (tenant, prompts + prompt, answers + answer, drafts + drafted, hits + accepted)
        for tenant, prompt, answer, _, accepted in rows.values():
            prompts, answers = self._tokens.get(tenant, (0, 0))
            self._tokens[tenant] = prompts + prompt, answers + answer + accepted
        self._steps.append((round(seconds, 6), list(rows.values())))

    def look(self) -> None:
        """Send a Snapshot if one is due. Called whenever something may have changed."""
        now = self._clock()
        if now < self._due:
            self._is_stale = True
            return
        shown = self._pages(), self._queue(), self._memory()
        if self._steps or shown != self._shown:
            self._send(Snapshot(list(self._steps), self._tokens, *shown))
        self._shown, self._tokens, self._is_stale = shown, {}, False
        self._steps.clear()
        self._due = now + max(INTERVAL, (self._clock() - now) / COST_SHARE)

    def _pages(self) -> dict[str, Any]:
        cache = self._scheduler.cache
        shown, statistics = cache.page_map(), cache.statistics()
        return {
            "page_tokens": PAGE_TOKENS,
            "total": statistics.pages,
            **{str(state): number for state, number in shown.counts.items()},
            "host": statistics.host_pages,
            "disk": statistics.disk_pages,
            "tenants": shown.owners,
            "map": shown.cells,
        }

    def _queue(self) -> dict[str, Any]:
        statistics = self._scheduler.statistics()
        num_embeds = self._embedder.statistics().requests if self._embedder is not None else 0
        return {
            "running": statistics.running + num_embeds,
            "waiting": statistics.waiting,
            "tenants": statistics.tenants,
        }

    def _memory(self) -> dict[str, Any]:
        if self._elastic is None:
            num_tokens = self._scheduler.cache.num_pages * PAGE_TOKENS
            return {"kv_tokens": num_tokens, "kv_max": num_tokens, "state": "fixed"}
        statistics = self._elastic.statistics()
        return {"kv_tokens": statistics.kv_tokens, "kv_max": statistics.kv_max, "state": self._elastic.state}
