"""Starts an engine process on this machine. It imports little, so that an engine can load beside the API's imports."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import orjson

from scheduler import crash_record
from scheduler.config import EngineConfig
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
LOADING_LIMIT: Final = 10.0
"""Seconds that an engine may take to end while it loads a model, before it is killed."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """An engine process, which ends when `socket` is closed."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    """The API's end of the connection."""
    record: CrashRecord


def spawn(
    config: EngineConfig,
    *,
    command: tuple[str, ...] | None = None,
    environment: Mapping[str, str] = ENGINE_ENVIRONMENT,
) -> EngineProcess:
    """Starts a process of ENGINE_COMMAND or of another command. Raises OSError if that fails.

    `environment`: default variables, which the user's environment overrides.
    """
    ours, theirs = socket.socketpair()
    with ExitStack() as undo, theirs:
        undo.enter_context(ours)
        record_fd = crash_record.create()
        try:
            record = CrashRecord(record_fd)
            with _blocked(signal.SIGINT, signal.SIGTERM):
                process = subprocess.Popen(
                    [*(command or ENGINE_COMMAND), str(theirs.fileno()), _text(config), str(record_fd)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), record_fd],
                    env={**environment, **os.environ},
                )
        finally:
            os.close(record_fd)
        undo.pop_all()
    return EngineProcess(process, ours, record)


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals in this thread, and for good in processes that it starts.

    Ctrl-C reaches the whole process group, also an engine that still imports what it needs to ignore signals. The API
    ends its engines.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _text(config: EngineConfig) -> str:
    return orjson.dumps(asdict(config)).decode()


class Ahead:
    """An engine that was started before the server that will use it."""

    def __init__(self, config: EngineConfig, *, command: tuple[str, ...] | None = None) -> None:
        """Starts it. Raises OSError if that fails."""
        self._config = config
        self._engine: EngineProcess | None = spawn(config, command=command)

    def take(self, config: EngineConfig) -> EngineProcess | None:
        """Returns the engine to the first who needs one of this configuration; None to others.

        If its model is needed with another configuration, it ends.
        """
        engine = self._engine
        if engine is None or config.model_path != self._config.model_path:
            return None
        self._engine = None
        if config == self._config:
            return engine
        engine.socket.close()
        engine.record.close()
        threading.Thread(target=_reap, args=[engine.process], daemon=True).start()
        return None


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process, and kill it if it does not end."""
    try:
        process.wait(LOADING_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
