"""Starts and ends engine processes on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson
import psutil
import trio

from api.engine.connection import Connection
from api.engine.ending import Ending, ending_of
from api.engine.stream import EngineStream
from scheduler import crash_record
from scheduler.config import EngineConfig, EngineInfo
from scheduler.crash_record import CrashRecord

ENGINE_COMMAND: Final = (sys.executable, "-P", "-m", "scheduler")
"""`-P` removes the current folder from the import path: it may contain a `scheduler` of the user's own."""
ENGINE_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "GOMP_SPINCOUNT": "1000",
}
"""Defaults, which the user's environment overrides. Without GGML_NO_BACKTRACE a debugger attaches to a crashed engine,
which delays the next one. With huge pages, gigabytes of KV memory are allocated in a fifth of the time. llama.cpp's
threads spin while they wait for each other. By default they spin for milliseconds, on cores that other engines and
the API need. Short spinning was as fast alone, and nearly twice as fast beside a busy program (docs/performance.md)."""
END_LIMIT: Final = 10.0
"""Seconds that an engine may take to end, including the running step, before it is killed."""


class EngineLauncher:
    """Starts engine processes for one model, one at a time."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: tuple[str, ...] = ENGINE_COMMAND,
        environment: Mapping[str, str] = ENGINE_ENVIRONMENT,
    ) -> None:
        """`environment`: default variables of the engine, which the user's environment overrides."""
        self._config = config
        self._command = command
        self._environment = environment

    @asynccontextmanager
    async def launch(self) -> AsyncIterator[Connection]:
        """The connection to a new process, which ends with the block. Raises OSError if it cannot be started."""
        ours, theirs = socket.socketpair()
        with ExitStack() as undo, theirs, _new_record() as (record_fd, record):
            undo.enter_context(ours)
            config = orjson.dumps(asdict(self._config)).decode()
            process = await trio.lowlevel.open_process(
                [*self._command, str(theirs.fileno()), config, str(record_fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), record_fd],
                env={**self._environment, **os.environ},
            )
            undo.pop_all()
        with closing(record):
            try:  # the engine ends when the connection is closed
                async with Connection.over(EngineStream(ours)) as connection:
                    yield connection
            finally:
                is_killed = not await _end(process)
            connection.ending = _ending(process, is_killed, connection.is_garbled, record)

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


@contextmanager
def _new_record() -> Iterator[tuple[int, CrashRecord]]:
    """A crash record for a new process, and its file descriptor, which is closed when the block ends."""
    fd = crash_record.create()
    try:
        yield fd, CrashRecord(fd)
    finally:
        os.close(fd)


def _ending(process: trio.Process, is_killed: bool, is_garbled: bool, record: CrashRecord) -> Ending:
    """How the process ended. `is_killed`: because it did not end by itself. `is_garbled`: after an invalid message."""
    if is_garbled:
        return Ending("sent a message that cannot be read", crashed=True)
    if is_killed or process.returncode is None:
        return Ending(f"closed its connection, but did not end within {END_LIMIT:g} seconds")
    return ending_of(process.returncode, record)


async def _end(process: trio.Process) -> bool:
    """Wait until a process with a closed connection has ended. Returns False if it had to be killed after END_LIMIT."""
    with trio.move_on_after(END_LIMIT, shield=True):
        await process.wait()
    if process.returncode is not None:
        return True
    process.kill()
    with trio.move_on_after(END_LIMIT, shield=True):
        await process.wait()
    return False
