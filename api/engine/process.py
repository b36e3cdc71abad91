"""Starts and ends engine processes on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson
import psutil
import trio

from api.engine.connection import Connection
from scheduler.config import EngineConfig, EngineInfo

ENGINE_COMMAND: Final = (sys.executable, "-P", "-m", "scheduler")
"""`-P` removes the current folder from the import path: it may contain a `scheduler` of the user's own."""
ENGINE_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Defaults, which the user's environment overrides. Without GGML_NO_BACKTRACE a debugger attaches to a crashed engine,
which delays the next one. With huge pages, gigabytes of KV memory are allocated in a fifth of the time."""
SHARED_CORES: Final = {"GOMP_SPINCOUNT": "1000"}
"""Further defaults for an engine beside others. llama.cpp's threads spin while they wait for each other. If engines
share cores, long spinning would occupy cores that another engine needs."""
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
        with ExitStack() as undo, theirs:
            undo.enter_context(ours)
            process = await trio.lowlevel.open_process(
                [*self._command, str(theirs.fileno()), orjson.dumps(asdict(self._config)).decode()],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**self._environment, **os.environ},
            )
            undo.pop_all()
        try:  # the engine ends when the connection is closed
            async with Connection.over(trio.SocketStream(trio.socket.from_stdlib_socket(ours))) as connection:
                yield connection
        finally:
            await _end(process)

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


async def _end(process: trio.Process) -> None:
    """Wait until a process with a closed connection has ended. Kill it after END_LIMIT."""
    with trio.move_on_after(END_LIMIT, shield=True):
        await process.wait()
    if process.returncode is None:
        process.kill()
        with trio.move_on_after(END_LIMIT, shield=True):
            await process.wait()
