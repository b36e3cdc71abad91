"""Merges all who watch the server: each engine is watched once, and each moment is looked at once.

Nothing runs while nobody watches. The feeds themselves look, at common times; the first one at each time looks for all.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Final

import trio

from api.serving.fleet import Fleet
from api.serving.live.latency import Latencies
from api.serving.live.scene import Scene, WatchedModel
from api.serving.model import ModelRuntime

INTERVAL: Final = 0.25
"""Seconds between two looks."""
LATENCY_LOOKS: Final = 4
"""Looks after which open requests are looked at."""
MAX_FEEDS: Final = 64
MAX_FEEDS_OF_TENANT: Final = 8
"""One tenant must not take the feeds of all."""
FEED_SECONDS: Final = 600.0
"""A feed then ends, and its client asks again. So a key that was revoked does not watch for ever."""


class TooManyFeedsError(Exception):
    """No more feeds may be opened. The message is one sentence for the user."""


class Hub:
    """All who watch one server."""

    def __init__(self, fleet: Fleet, *, by_tenant: bool, clock: Callable[[], float] = time.time) -> None:
        """`by_tenant`: whether tenants with keys watch. `clock`: seconds since the epoch."""
        self.latencies = Latencies(by_tenant=by_tenant)
        """An observer. It must get all requests."""
        self._fleet = fleet
        self._clock = clock
        self._feeds: Counter[str] = Counter()
        """Open feeds by owner."""
        self._watched: dict[ModelRuntime, WatchedModel] = {}
        self._looks = 0
        self._looked_at = -1
        """The number of the interval of the last look."""
        self._latency_version = -1
        self._scene: Scene | None = None

    @property
    def num_feeds(self) -> int:
        return self._feeds.total()

    def check_room(self, owner: str) -> None:
        """Raises TooManyFeedsError if one more feed may not be opened. `owner`: its tenant; empty without keys."""
        if self.num_feeds >= MAX_FEEDS:
            raise TooManyFeedsError(f"{MAX_FEEDS} live feeds are open, and no more are allowed.")
        if owner and self._feeds[owner] >= MAX_FEEDS_OF_TENANT:
            raise TooManyFeedsError(f"This key's tenant has {MAX_FEEDS_OF_TENANT} live feeds, and no more are allowed.")

    async def scenes(self, owner: str) -> AsyncGenerator[Scene | None]:
        """A scene at once, then each time the next one, or None if nothing has changed: four times a second.

        Ends after FEED_SECONDS, and as soon as the server shuts down. Raises TooManyFeedsError like `check_room`.
        """
        self.check_room(owner)
        self._feeds[owner] += 1
        try:
            end, version, pause = trio.current_time() + FEED_SECONDS, -1, 2
            while not self._fleet.draining and (now := trio.current_time()) < end:
                scene = self._look(now)
                yield scene if scene.version != version else None
                await trio.sleep_until((trio.current_time() // INTERVAL + pause) * INTERVAL)
                version, pause = scene.version, 1  # the first pause is longer, because it begins at any time
        finally:
            self._feeds -= Counter({owner: 1})
            if not self._feeds:
                self._rest()

    def _look(self, now: float) -> Scene:
        number = int(now // INTERVAL)
        if self._scene is not None and number == self._looked_at:
            return self._scene
        self._looked_at = number
        if self._looks % LATENCY_LOOKS == 0:
            self.latencies.refresh()
        self._looks += 1
        models = self._fleet.models
        gone = self._watched.keys() - set(models)
        for model in gone:
            self._watched.pop(model).end()
        has_changed = bool(gone) or self._scene is None or self.latencies.version != self._latency_version
        self._latency_version = self.latencies.version
        for model in models:
            if model not in self._watched:
                self._watched[model] = WatchedModel(model, now)
                has_changed = True
            has_changed |= self._watched[model].refresh(now)
        if has_changed or self._scene is None:
            version = self._scene.version + 1 if self._scene is not None else 0
            scenes = [self._watched[model].scene(now) for model in models]
            self._scene = Scene(version, self._clock(), scenes)
        return self._scene

    def _rest(self) -> None:
        """Nobody watches any more."""
        for watched in self._watched.values():
            watched.end()
        self._watched.clear()
        self._scene = None
        self._looks = 0
