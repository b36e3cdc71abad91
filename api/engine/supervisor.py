"""Keeps an engine running: waits until it is ready, and starts another when it has ended."""

import logging
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from api.engine.connection import Connection
from scheduler.config import EngineInfo
from scheduler.messages import Failed, Message, Ready, Report, Stop

_log = logging.getLogger("cortex.api")

RESTART_PAUSE: Final = 1.0
"""Seconds before an engine that ended is replaced. Doubled after each start after which no engine was ready."""
MAX_RESTART_PAUSE: Final = 30.0


class EngineFailedError(Exception):
    """The engine could not load the model; the message is one line for the user."""

    def __init__(self, reason: str, missing_bytes: int = 0) -> None:
        """`missing_bytes`: memory with which the engine could have loaded the model; 0 if that was not the reason."""
        super().__init__(reason)
        self.missing_bytes = missing_bytes


class Launcher(Protocol):
    """Where the engines of one model come from: processes on this machine (api.engine.process), or elsewhere."""

    def launch(self) -> AbstractAsyncContextManager[Connection]:
        """The connection to a new engine. The engine ends with the block. Raises OSError if none can be started."""

    def public_reason(self, reason: str) -> str:
        """Why an engine failed, without what clients must not know."""

    def resident_bytes(self, info: EngineInfo) -> int:
        """What this engine has in memory, the model's weights included; 0 if that is unknown."""


class EngineListener(Protocol):
    """Who uses the engine. No method waits."""

    def on_ready(self) -> None:
        """A new engine is ready for requests."""

    def on_message(self, message: Message) -> None:
        """The engine has sent something about a request."""

    def on_gone(self) -> None:
        """The engine has ended or is being ended."""


class Supervisor:
    """Keeps one engine of a launcher's running. One task runs `run`."""

    def __init__(self, launcher: Launcher, listener: EngineListener) -> None:
        self._launcher = launcher
        self._listener = listener
        self.info: EngineInfo | None = None
        """What the engine serves; None while none is ready."""
        self.failure = ""
        """Why the last start failed; empty once an engine is ready again."""
        self._connection: Connection | None = None
        self._settled = trio.Event()
        """Set while an engine is ready, or the last one could not be started."""
        self._was_ready = False
        """Whether any engine has been ready."""
        self._stopping = trio.Event()

    @property
    def resident_bytes(self) -> int:
        """What the engine has in memory; 0 while none is ready."""
        return self._launcher.resident_bytes(self.info) if self.info else 0

    def post(self, message: Message) -> None:
        """Send a message to the engine. Without an engine the message is dropped."""
        if self._connection is not None:
            self._connection.post(message)

    async def inspect(self) -> Report | None:
        """Statistics from the engine, or the last ones if it is busy; None without an engine."""
        return await self._connection.inspect() if self._connection is not None else None

    async def wait_settled(self) -> None:
        """Until an engine is ready, or could not be started: then there is a `failure`."""
        await self._settled.wait()

    def stop(self) -> None:
        """Let the engine end now, and start no other."""
        self._stopping.set()
        self.post(Stop())

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`; `started` with the first one that is ready.

        Raises EngineFailedError if the first one cannot load the model, OSError if one cannot be started.
        """
        try:
            await self._run(task_status)
        finally:
            self._settled.set()

    async def _run(self, task_status: trio.TaskStatus[EngineInfo]) -> None:
        pause = RESTART_PAUSE
        while True:
            failed = await self._run_engine(task_status)
            if self._stopping.is_set() and self._was_ready:
                return
            if failed is None:
                pause, reason = RESTART_PAUSE, "the engine is gone"
            elif not self._was_ready:
                raise EngineFailedError(failed.reason, failed.missing_bytes)
            else:
                pause, reason = min(2 * pause, MAX_RESTART_PAUSE), failed.reason
                self.failure = failed.reason
                self._settled.set()
            _log.error("%s; starting another in %.0f s", reason, pause)
            with trio.move_on_after(pause):
                await self._stopping.wait()
                return

    async def _run_engine(self, task_status: trio.TaskStatus[EngineInfo]) -> Failed | None:
        """Run one engine to its end. Returns why it never was ready; None if it was."""
        is_ready, failed = False, Failed("the engine ended while loading the model; the log may say why")
        async with self._launcher.launch() as connection:
            self._connection = connection
            try:
                async for message in connection.messages():
                    match message:
                        case Ready(info):
                            is_ready = True
                            self._enter_service(info, task_status)
                        case Failed(reason, missing_bytes):
                            failed = Failed(self._launcher.public_reason(reason), missing_bytes)
                        case _:
                            self._listener.on_message(message)
            finally:
                self.info = self._connection = None
                if self._settled.is_set():
                    self._settled = trio.Event()
                self._listener.on_gone()
        return None if is_ready else failed

    def _enter_service(self, info: EngineInfo, task_status: trio.TaskStatus[EngineInfo]) -> None:
        self.info, self.failure = info, ""
        self._settled.set()
        _log.info("engine %d serves %s", info.pid, info.description)
        if not self._was_ready:
            self._was_ready = True
            task_status.started(info)
        self._listener.on_ready()
