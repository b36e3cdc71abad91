"""Which models stay in memory: idle ones are unloaded after a time, or when another model needs their memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from api.serving.model import ModelRuntime
from api.serving.state import State

_log = logging.getLogger("cortex.api")

IN_USE_SECONDS: Final = 1.0
"""How long a model counts as used after a request, which may not have reached the engine yet."""
ROOM_LIMIT: Final = 30.0
"""Seconds that a loading model waits for another one to be unused for IN_USE_SECONDS."""


class MemoryPolicy:
    """Unloads models of a server, least recently used first. Never unloads a model that has requests."""

    def __init__(self, models: Callable[[], Sequence[ModelRuntime]], *, idle_limit: float) -> None:
        """`models` returns all models of the server. `idle_limit`: seconds without use until one is unloaded, or 0."""
        self._models = models
        self.idle_limit = idle_limit

    def mapped_bytes_beside(self, name: str) -> int:
        """See `Neighbours`. Models that are being stopped or restarted count, too."""
        return sum(model.mapped_bytes for model in self._loaded_beside(name))

    def _loaded_beside(self, name: str) -> list[ModelRuntime]:
        loaded = (State.READY, State.UNLOADING, State.DRAINING)
        return [model for model in self._models() if model.state in loaded and model.options.name != name]

    async def make_room(self, missing_bytes: int) -> bool:
        """Unload the least recently used idle model.

        Returns False and unloads none if all idle models together hold less than `missing_bytes`, or if no model has
        been unused for IN_USE_SECONDS within ROOM_LIMIT.
        """
        deadline = trio.current_time() + ROOM_LIMIT
        while idle := [model for model in self._models() if model.is_idle]:
            oldest = min(idle, key=lambda model: model.last_used)
            unused_from = oldest.last_used + IN_USE_SECONDS
            if unused_from > deadline or sum(model.resident_bytes for model in idle) < missing_bytes:
                return False
            if unused_from <= trio.current_time():
                _log.info("%s is unloaded to make room for another model", oldest.options.name)
                with trio.CancelScope(shield=True):  # completes even if the other model is no longer requested
                    await oldest.unload()
                return True
            await trio.sleep_until(unused_from)
        return False

    async def unload_idle(self) -> None:
        """Unload each model that was not used for the idle limit. Runs until cancelled."""
        if not self.idle_limit:
            await trio.sleep_forever()
        while True:
            await trio.sleep(min(1.0, self.idle_limit))
            for model in self._models():
                if not model.is_idle:
                    model.touch()
                elif trio.current_time() - model.last_used >= self.idle_limit:
                    _log.info("%s was idle for %.0f s and is unloaded", model.names[0], self.idle_limit)
                    await model.unload()
