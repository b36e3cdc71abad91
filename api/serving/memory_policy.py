"""Which models stay in memory: unused ones are unloaded after a while, or when another model needs their memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from api.serving.model import ModelRuntime
from api.serving.state import State

_log = logging.getLogger("cortex.api")

IN_USE_SECONDS: Final = 1.0
"""A model counts as used for so long after a request, which may not have reached the engine yet."""
ROOM_LIMIT: Final = 30.0
"""Seconds that a model may wait until others have been unused for so long."""


class MemoryPolicy:
    """Decides which models of a server are unloaded, least recently used first. Never one that has requests."""

    def __init__(self, models: Callable[[], Sequence[ModelRuntime]], *, idle_limit: float) -> None:
        """`models` returns all models of the server. `idle_limit`: seconds without use before one is unloaded, or 0."""
        self._models = models
        self._idle_limit = idle_limit

    @property
    def any_ready(self) -> bool:
        """Whether a model is loaded."""
        return any(model.state is State.READY for model in self._models())

    @property
    def weight_bytes(self) -> int:
        """The weights of all models that are loaded. The system counts them as available: they are mapped files."""
        return sum(model.weight_bytes for model in self._models() if model.state is State.READY)

    async def make_room(self, missing_bytes: int) -> bool:
        """Unload the least recently used of the models that have no requests.

        Returns False, and unloads none, if all of them together hold less memory, or if they are in use for too long.
        """
        deadline = trio.current_time() + ROOM_LIMIT
        while idle := [model for model in self._models() if model.is_idle]:
            oldest = min(idle, key=lambda model: model.last_used)
            unused_from = oldest.last_used + IN_USE_SECONDS
            if unused_from > deadline or sum(model.resident_bytes for model in idle) < missing_bytes:
                return False
            if unused_from <= trio.current_time():
                _log.info("%s is unloaded, to make room for another", oldest.options.name)
                with trio.CancelScope(shield=True):  # to the end, even if nobody wants the other model any more
                    await oldest.unload()
                return True
            await trio.sleep_until(unused_from)
        return False

    async def unload_idle(self) -> None:
        """Until cancelled: unload each model that was not used for the idle limit."""
        if not self._idle_limit:
            await trio.sleep_forever()
        while True:
            await trio.sleep(min(1.0, self._idle_limit))
            for model in self._models():
                if not model.is_idle:
                    model.touch()
                elif trio.current_time() - model.last_used >= self._idle_limit:
                    _log.info("%s was idle for %.0f s and is unloaded", model.names[0], self._idle_limit)
                    await model.unload()
