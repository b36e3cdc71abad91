"""One of the models of a server, and how it stands with it."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from api.flags import ModelOptions
from api.serving.service import ModelService

LOADING: Final = "loading"
READY: Final = "ready"
UNLOADED: Final = "unloaded"
STOPPING: Final = "stopping"
FAILED: Final = "failed"


@dataclass(eq=False, slots=True)
class Slot:
    """A model that this server serves, whether or not it is in memory just now."""

    options: ModelOptions
    service: ModelService | None = None
    """None until its vocabulary is loaded, and while it is unloaded."""
    state: str = LOADING
    waits: bool = False
    """Whether requests wait while it loads, instead of being told to come back."""
    comes_back: bool = False
    """Whether it is only unloaded, so that requests wait until they can have it loaded again."""
    failure: str = ""
    """Why it could not be loaded."""
    was_ready: bool = False
    num_bytes: int = 0
    """Of its weights."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since the epoch."""
    last_used: float = 0.0
    settled: trio.Event = field(default_factory=trio.Event)
    """Set once it is loaded or has failed."""
    gone: trio.Event = field(default_factory=trio.Event)
    """Set once its engine has ended."""
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around everything that its engine needs."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.options.names

    @property
    def is_ready(self) -> bool:
        return self.service is not None and self.service.engine.info is not None

    @property
    def is_idle(self) -> bool:
        """Whether it could answer and has nobody to answer to."""
        return self.state == READY and self.service is not None and not self.service.engine.num_active

    @property
    def resident_bytes(self) -> int:
        """What its engine has in memory."""
        return self.service.engine.resident_bytes if self.service is not None else 0

    @property
    def status(self) -> str:
        """loading, ready, stopping, unloaded or failed."""
        if self.state == READY and self.service is not None and not self.is_ready:  # its engine is started again
            return FAILED if self.service.engine.failure else LOADING
        return self.state

    async def health(self) -> dict[str, Any]:
        """What `cortex ps` shows of it."""
        told = await self.service.health() if self.service else ModelService.no_health()
        return {
            "model": self.names[0],
            "aliases": list(self.names[1:]),
            "path": str(self.options.path),
            "status": self.status,
        } | told
