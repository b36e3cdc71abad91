"""Keeps an engine running: starts it, waits until it is ready, and replaces it when it has ended."""

import logging
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from api.engine.connection import Connection
from api.engine.ending import Ending
from api.errors import os_error_text
from scheduler.config import EngineInfo
from scheduler.messages import Failed, Message, Ready, Report, Stop

_log = logging.getLogger("cortex.api")

RESTART_PAUSE: Final = 1.0
"""Seconds before an engine that has ended is replaced. Doubled after each failed start."""
MAX_RESTART_PAUSE: Final = 30.0
MAX_FAILED_STARTS: Final = 5
"""Failed starts in a row after which waiting requests end with the reason: half a minute of pauses."""


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

    def on_message(self, message: Message) -> bool:
        """The engine has sent a message about requests. Returns whether this brings one of them forward."""

    def on_gone(self, ending: Ending) -> None:
        """The engine has ended. Another one may follow."""

    def on_failure(self, reason: str) -> None:
        """MAX_FAILED_STARTS starts in a row have failed, the last one for this reason."""


class Supervisor:
    """Keeps one engine of a launcher running. One task must run `run`."""

    def __init__(self, launcher: Launcher, listener: EngineListener, loading: trio.Lock) -> None:
        """An engine that replaces another holds `loading` until it is ready. For the first one, the caller holds it."""
        self._launcher = launcher
        self._listener = listener
        self._loading = loading
        self._is_loading = False
        """Whether this supervisor holds the lock."""
        self.info: EngineInfo | None = None
        """Properties of the ready engine; None while no engine is ready."""
        self.failure = ""
        """Why the last start failed; empty once an engine is ready again."""
        self.num_restarts = 0
        """Number of engines that became ready after the first one."""
        self._connection: Connection | None = None
        self._settled = trio.Event()
        """Set while an engine is ready, or after a failed start."""
        self._was_ready = False
        """Whether any engine has been ready."""
        self._stopping = False
        self._pause = trio.CancelScope()
        """Contains the time between two engines."""

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

    @property
    def report_age(self) -> float:
        """Seconds since the engine's last statistics arrived; 0 if there are none."""
        return self._connection.report_age if self._connection is not None else 0.0

    async def wait_settled(self) -> None:
        """Wait until an engine is ready or a restart has failed. After a failed restart, `failure` is set."""
        await self._settled.wait()

    def stop(self) -> None:
        """Stop the engine now, and start no other."""
        self._stopping = True
        self._pause.cancel()
        self.post(Stop())

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`. Calls `started` with the properties of the first ready engine.

        Raises EngineFailedError if the first engine cannot load the model, OSError if it cannot be started.
        """
        try:
            await self._run(task_status)
        finally:
            self._end_loading()
            self._settled.set()

    async def _run(self, task_status: trio.TaskStatus[EngineInfo]) -> None:
        pause, num_failed = RESTART_PAUSE, 0
        while True:
            reason, failed = await self._run_engine(task_status)
            self._end_loading()
            if self._stopping and self._was_ready:
                return
            if not self._was_ready:
                raise EngineFailedError(reason, failed.missing_bytes if failed else 0)
            if failed is None:
                pause, num_failed = RESTART_PAUSE, 0
            else:
                pause, num_failed = min(2 * pause, MAX_RESTART_PAUSE), num_failed + 1
                self.failure = reason
                self._settled.set()
                if num_failed >= MAX_FAILED_STARTS:
                    self._listener.on_failure(reason)
            _log.error("%s; starting another in %.0f s", reason, pause)
            if not await self._begin_loading(pause):
                return

    async def _begin_loading(self, pause: float) -> bool:
        """Wait for the pause, and until no other model is loading. Returns False if `stop` was called."""
        with trio.CancelScope() as self._pause:
            await trio.sleep(pause)
            await self._loading.acquire()
            self._is_loading = True
        return not self._stopping

    def _end_loading(self) -> None:
        if self._is_loading:
            self._is_loading = False
            self._loading.release()

    async def _run_engine(self, task_status: trio.TaskStatus[EngineInfo]) -> tuple[str, Failed | None]:
        """Run one engine until it ends. Returns why it ended, and a Failed if the start counts as failed.

        This is so if it was never ready. It is also so if it crashed without any request and before it brought a
        request forward: the next one would probably do the same.
        """
        is_ready = is_useful = False
        failed: Failed | None = None
        try:
            async with self._launcher.launch() as connection:
                self._connection = connection
                if self._stopping:  # while the engine was being started
                    connection.post(Stop())
                try:
                    async for message in connection.messages():
                        match message:
                            case Ready(info):
                                is_ready = True
                                self._enter_service(info, task_status)
                            case Failed():
                                failed = message
                            case _:
                                is_useful |= self._listener.on_message(message)
                finally:
                    self._leave_service()
        except OSError as error:
            if not self._was_ready:
                raise
            failed = Failed(f"no engine can be started: {os_error_text(error)}")
            return failed.reason, failed
        ending = connection.ending
        self._listener.on_gone(ending)
        reason = self._launcher.public_reason(failed.reason if failed else _reason(ending, is_ready=is_ready))
        if failed is None and (not is_ready or (ending.crashed and not ending.suspects and not is_useful)):
            failed = Failed(reason)
        return reason, failed

    def _enter_service(self, info: EngineInfo, task_status: trio.TaskStatus[EngineInfo]) -> None:
        self.info, self.failure = info, ""
        self._settled.set()
        self._end_loading()
        _log.info("engine %d serves %s", info.pid, info.description)
        if not self._was_ready:
            self._was_ready = True
            task_status.started(info)
        else:
            self.num_restarts += 1
        self._listener.on_ready()

    def _leave_service(self) -> None:
        self.info = self._connection = None
        if self._settled.is_set():
            self._settled = trio.Event()


def _reason(ending: Ending, *, is_ready: bool) -> str:
    return f"the engine {ending.reason}" if is_ready else f"while loading the model, the engine {ending.reason}"
