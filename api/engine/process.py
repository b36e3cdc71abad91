"""Starts and ends engine processes on this machine."""

import math
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Final

import psutil
import trio

from api.engine.connection import Connection
from api.engine.ending import Ending, ending_of
from api.engine.spawn import ENGINE_ENVIRONMENT, Ahead, spawn
from api.engine.stream import EngineStream
from scheduler.config import EngineConfig, EngineInfo
from scheduler.crash_record import CrashRecord

_limiter: Final = trio.CapacityLimiter(math.inf)
"""For threads that wait for processes. They must not wait for those that render prompts."""
END_LIMIT: Final = 10.0
"""Seconds that an engine may take to end, including the running step, before it is killed."""


class EngineLauncher:
    """Starts engine processes for one model, one at a time."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: tuple[str, ...] | None = None,
        environment: Mapping[str, str] = ENGINE_ENVIRONMENT,
        ahead: Ahead | None = None,
    ) -> None:
        """`command` and `environment`: see `spawn`.

        `ahead`: an engine that was started for this configuration, which becomes the first one.
        """
        self._config = config
        self._spawn = partial(spawn, config, command=command, environment=environment)
        self._ahead = ahead

    @asynccontextmanager
    async def launch(self) -> AsyncIterator[Connection]:
        """The connection to a new process, which ends with the block. Raises OSError if it cannot be started."""
        engine = self._ahead.take(self._config) if self._ahead is not None else None
        if engine is None:
            engine = await trio.to_thread.run_sync(self._spawn, limiter=_limiter)
        with closing(engine.record):
            try:  # the engine ends when the connection is closed
                async with Connection.over(EngineStream(engine.socket)) as connection:
                    yield connection
            finally:
                is_killed = not await _end(engine.process)
            connection.ending = _ending(engine.process, is_killed, connection.is_garbled, engine.record)

    def public_reason(self, reason: str) -> str:
        """The reason for a failure without the model's folder, which is private."""
        path = self._config.model_path
        return reason.replace(path, Path(path).name)

    @staticmethod
    def resident_bytes(info: EngineInfo) -> int:
        """Resident memory of the process, weights included; 0 if it has ended."""
        try:
            return int(psutil.Process(info.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0


def _ending(process: subprocess.Popen[bytes], is_killed: bool, is_garbled: bool, record: CrashRecord) -> Ending:
    """How the process ended. `is_killed`: because it did not end by itself. `is_garbled`: after an invalid message."""
    if is_garbled:
        return Ending("sent a message that cannot be read", crashed=True)
    if is_killed or process.returncode is None:
        return Ending(f"closed its connection, but did not end within {END_LIMIT:g} seconds")
    return ending_of(process.returncode, record)


async def _end(process: subprocess.Popen[bytes]) -> bool:
    """Wait until a process with a closed connection has ended. Returns False if it had to be killed after END_LIMIT."""
    await _wait(process)
    if process.poll() is not None:
        return True
    process.kill()
    await _wait(process)
    return False


async def _wait(process: subprocess.Popen[bytes]) -> None:
    with trio.move_on_after(END_LIMIT, shield=True):
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True, limiter=_limiter)
