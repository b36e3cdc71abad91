"""Keeps an engine running: starts it, waits until it is ready, and replaces it when it has ended."""

import logging
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from api.engine.connection import Connection
from scheduler.config import EngineInfo
from scheduler.messages import Failed, Message, Ready, Report, Stop

_log = logging.getLogger("cortex.api")

RESTART_PAUSE: Final = 1.0
"""Seconds before an engine that has ended is replaced. Doubled after each failed start."""
MAX_RESTART_PAUSE: Final = 30.0


class EngineFailedError(Exception):
    """The engine could not load the model. The message is one line for the user."""

    def __init__(self, reason: str, missing_bytes: int = 0) -> None:
        """`missing_bytes`: additional memory that loading the model needs; 0 if memory was not the reason."""
        super().__init__(reason)
        self.missing_bytes = missing_bytes


class Launcher(Protocol):
    """Starts the engines of one model: processes on this machine (api.engine.process), or elsewhere."""

    def launch(self) -> AbstractAsyncContextManager[Connection]:
        """The connection to a new engine, which ends with the block. Raises OSError if it cannot be started."""

    def public_reason(self, reason: str) -> str:
        """The reason for a failure without private details, for clients."""

    def resident_bytes(self, info: EngineInfo) -> int:
        """Resident memory of this engine, weights included; 0 if unknown."""


class EngineListener(Protocol):
    """Receives the events of an engine. Its methods must not wait."""

    def on_ready(self) -> None:
        """A new engine is ready for requests."""

    def on_message(self, message: Message) -> None:
        """The engine has sent a message about a request."""

    def on_gone(self) -> None:
        """The engine has ended or is being ended."""


class Supervisor:
    """Keeps one engine of a launcher running. One task must run `run`."""

    def __init__(self, launcher: Launcher, listener: EngineListener) -> None:
        self._launcher = launcher
        self._listener = listener
        self.info: EngineInfo | None = None
        """Properties of the ready engine; None while no engine is ready."""
        self.failure = ""
        """Why the last start failed; empty once an engine is ready again."""
        self._connection: Connection | None = None
        self._settled = trio.Event()
        """Set while an engine is ready, or after a failed start."""
        self._was_ready = False
        """Whether any engine has been ready."""
        self._stopping = trio.Event()

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the engine, weights included; 0 while no engine is ready."""
        return self._launcher.resident_bytes(self.info) if self.info else 0

    def post(self, message: Message) -> None:
        """Send a message to the engine. Without an engine the message is dropped."""
        if self._connection is not None:
            self._connection.post(message)

    async def inspect(self) -> Report | None:
        """Returns the engine's statistics, or the previous ones if the engine is busy; None if there are none."""
        return await self._connection.inspect() if self._connection is not None else None

    async def wait_settled(self) -> None:
        """Wait until an engine is ready or a restart has failed. After a failed restart, `failure` is set."""
        await self._settled.wait()

    def stop(self) -> None:
        """Stop the engine now, and start no other."""
        self._stopping.set()
        self.post(Stop())

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`. Calls `started` with the properties of the first ready engine.

        Raises EngineFailedError if the first engine cannot load the model, OSError if an engine cannot be started.
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
                pause, reason = RESTART_PAUSE, "the engine ended unexpectedly"
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
        """Run one engine until it ends. Returns why it never became ready; None if it did."""
        is_ready, failed = False, Failed("the engine ended while loading the model; the log may show the reason")
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
