"""Servers as processes: started, asked whether they answer, watched for what they use, and always stopped."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import trio

from bench.client import Client, Target, first_model, open_http
from bench.records import Ask, BenchError

START_SECONDS = 180.0
# From SIGTERM to SIGKILL.
STOP_SECONDS = 10.0
# A server is quiet when over so long it has used less than a fifth of a core.
QUIET_WINDOW_SECONDS = 0.25
QUIET_CORES = 0.2
MAX_LINE_CHARS = 300
# A user's own settings would make a server another one than its flags say.
FOREIGN_PREFIXES = ("CORTEX_", "LLAMA_ARG_")

WARM_UP = Ask(({"role": "user", "content": "Say hello."},), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One server: how it is started, and what its requests say. Without a command it is somebody else's."""

    name: str
    url: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # for a server that does not know ignore_eos
    note: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of a server have used so far, and hold now."""

    cpu_s: float
    memory_bytes: int
    is_ours: bool = False
    """This very program's, as the bare loop's is."""


class Server:
    """A server's process with its descendants. `start` may be called again after it died or was stopped."""

    def __init__(self, spec: Spec, log: Path) -> None:
        self.spec = spec
        self.model = ""
        self._log = log
        self._process: trio.Process | None = None

    @property
    def alive(self) -> bool:
        return not self.spec.command or (self._process is not None and self._process.poll() is None)

    @property
    def pid(self) -> int:
        """Of the process that was started. Raises BenchError if none runs."""
        if self._process is None:
            raise BenchError(f"{self.spec.name} does not run")
        return self._process.pid

    async def start(self, within: float = START_SECONDS) -> None:
        """Returns when it has answered a request. Raises BenchError, with the last line it logged."""
        self.model = ""
        if self.spec.command:
            await self.stop()
            self._process = await self._open()
        error = ""
        with trio.move_on_after(within):
            while True:
                try:
                    self.model = await self._warm_up(within)
                except BenchError as refusal:  # it may still be loading
                    error = str(refusal)
                else:
                    return
                if not self.alive:
                    break
                await trio.sleep(0.1)
        trouble = self.epitaph() or f"{self.spec.name} does not answer: {error}"
        await self.stop()
        raise BenchError(trouble)

    async def _open(self) -> trio.Process:
        environment = {name: v for name, v in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
        with self._log.open("ab") as log:
            try:
                return await trio.lowlevel.open_process(
                    list(self.spec.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environment, **self.spec.environment},
                    start_new_session=True,  # Ctrl-C is for us alone, and the whole group can be ended
                )
            except OSError as error:
                raise BenchError(f"cannot start {self.spec.name}: {error}") from error

    async def _warm_up(self, seconds: float) -> str:
        """One short request; the name of the model."""
        async with open_http(None, seconds) as http:
            model = await first_model(http, self.spec.url)
            record = await Client(http, self.target(seconds, model)).chat(WARM_UP)
        if record.error is not None:
            raise BenchError(record.error)
        return model

    def target(self, time_limit: float, model: str = "") -> Target:
        return Target(
            url=self.spec.url,
            model=model or self.model,
            ignore_eos=self.spec.ignore_eos,
            fields=self.spec.fields,
            timeout=time_limit,
            time_limit=time_limit,
        )

    def epitaph(self) -> str:
        """How it ended, and what it logged last; empty while it runs."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return ""
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"{self.spec.name} ended with exit code {code}; it logged last: {last[:MAX_LINE_CHARS]}"

    def usage(self) -> Usage:
        cpu, memory = 0.0, 0
        for process in self._members():
            with suppress(psutil.Error):
                times = process.cpu_times()
                cpu += times.user + times.system
                memory += _own_memory(process)
        return Usage(cpu, memory)

    async def quiet(self, within: float) -> bool:
        """Waits until it computes nothing any more; False if after so long it still does."""
        deadline = trio.current_time() + within
        before = self.usage().cpu_s
        while True:
            await trio.sleep(QUIET_WINDOW_SECONDS)
            now = self.usage().cpu_s
            if now - before <= QUIET_CORES * QUIET_WINDOW_SECONDS:
                return True
            if trio.current_time() > deadline:
                return False
            before = now

    async def stop(self) -> None:
        """Ends the whole group, by force if need be; also when it is cancelled meanwhile."""
        process, members = self._process, self._members()
        if process is None:
            return
        with trio.CancelScope(shield=True):
            _signal_group(process.pid, signal.SIGTERM)
            with trio.move_on_after(STOP_SECONDS):
                await process.wait()
                while any(_runs(member) for member in members):  # noqa: ASYNC110 - not our children
                    await trio.sleep(0.05)
            _signal_group(process.pid, signal.SIGKILL)
            for member in members:  # one that left the group
                with suppress(psutil.Error):
                    member.kill()
            await process.wait()
        self._process, self.model = None, ""

    def _members(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []


def _own_memory(process: psutil.Process) -> int:
    """Pages that several processes share, as those of a mapped model, count once where the system tells (Linux)."""
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(memory, "pss", memory.rss))


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on; all are held at once, so that no two are the same."""
    with _bound_sockets(count) as sockets:
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def _bound_sockets(count: int) -> Iterator[list[socket.socket]]:
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(socket.socket())
            sockets[-1].bind(("127.0.0.1", 0))
        yield sockets
    finally:
        for each in sockets:
            each.close()
