"""What is known of each model at one moment, with the names of all tenants."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.engine.client import EngineClient
from api.serving.model import ModelRuntime
from api.serving.state import Status
from scheduler.messages import Row, Snapshot

RATE_SECONDS: Final = 3.0
"""Rates are averages of so many seconds."""
MIN_RATE_SECONDS: Final = 1.0
"""Before that much was watched, rates would jump."""
MAX_STEPS: Final = 32
RESIDENT_SECONDS: Final = 2.0
"""How often the resident memory of an engine is read."""

Rates = Mapping[str, tuple[float, float]]
"""Tokens of prompts and of answers per second, by tenant."""


@dataclass(frozen=True, slots=True)
class ModelScene:
    name: str
    status: Status
    steps: Sequence[tuple[float, Sequence[Row]]]
    """The newest steps since the previous scene, newest last."""
    snapshot: Snapshot | None
    """What its engine showed last; None while it has no engine."""
    resident_bytes: int
    rates: Rates
    error: str = ""
    """Why its engine shows nothing; empty if it did not fail to."""


@dataclass(frozen=True, slots=True)
class Scene:
    version: int
    """Each scene differs from the one before."""
    at: float
    """Seconds since the epoch."""
    models: Sequence[ModelScene]
    rendered: dict[str | None, bytes] = field(default_factory=dict)
    """What was made of it for each tenant that watches, and for those who see all (None)."""


class WatchedModel:
    """One model while somebody watches. Times are on trio's clock."""

    def __init__(self, model: ModelRuntime, now: float) -> None:
        self._model = model
        self._engine: EngineClient | None = None
        self._status: Status = model.status
        self._snapshot: Snapshot | None = None
        self._error = ""
        self._steps: deque[tuple[float, Sequence[Row]]] = deque(maxlen=MAX_STEPS)
        self._began = now
        self._tokens: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()
        """What the steps of the last RATE_SECONDS computed, by tenant: when it arrived, and the numbers."""
        self._arrived: list[Snapshot] = []
        self._resident_bytes = 0
        self._next_resident = now

    def end(self) -> None:
        """Watch it no more."""
        if self._engine is not None:
            self._engine.watch(None)
            self._engine = None

    def refresh(self, now: float) -> bool:
        """Take what its engine has shown since the last call. Returns whether anything has changed.

        Watches an engine that replaces another.
        """
        service = self._model.service
        if (engine := service.engine if service is not None else None) is not self._engine:
            self.end()
            self._engine = engine
            if engine is not None:
                engine.watch(self._arrived.append)
        self._steps.clear()
        changes = [self._take(now), self._expire(now), self._read_memory(now), self._model.status != self._status]
        self._status = self._model.status
        return any(changes)

    def scene(self, now: float) -> ModelScene:
        """What is known now. Its steps are those since the last but one call of `refresh`."""
        seconds = min(max(now - self._began, MIN_RATE_SECONDS), RATE_SECONDS)
        totals: dict[str, tuple[int, int]] = {}
        for _, tokens in self._tokens:
            for tenant, (prompt, answer) in tokens.items():
                prompts, answers = totals.get(tenant, (0, 0))
                totals[tenant] = prompts + prompt, answers + answer
        rates = {tenant: (prompts / seconds, answers / seconds) for tenant, (prompts, answers) in totals.items()}
        name = self._model.names[0]
        steps = list(self._steps)
        return ModelScene(name, self._status, steps, self._snapshot, self._resident_bytes, rates, self._error)

    def _take(self, now: float) -> bool:
        arrived, self._arrived[:] = list(self._arrived), []
        for snapshot in arrived:
            self._steps.extend(snapshot.steps)
            self._snapshot, self._error = snapshot if not snapshot.error else None, snapshot.error
            if snapshot.tokens:
                self._tokens.append((now, snapshot.tokens))
        if (self._snapshot is not None or self._error) and (self._engine is None or self._engine.info is None):
            self._snapshot, self._error = None, ""  # the engine has ended
            return True
        return bool(arrived)

    def _expire(self, now: float) -> bool:
        before = len(self._tokens)
        while self._tokens and now - self._tokens[0][0] >= RATE_SECONDS:
            self._tokens.popleft()
        return len(self._tokens) < before

    def _read_memory(self, now: float) -> bool:
        if now < self._next_resident:
            return False
        self._next_resident = now + RESIDENT_SECONDS
        before, self._resident_bytes = self._resident_bytes, self._model.resident_bytes
        return self._resident_bytes != before
