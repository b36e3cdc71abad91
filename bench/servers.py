"""Server processes: starts them, waits for an answer, measures CPU and memory, and always stops them."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import trio
from httpx import AsyncClient

from api.models.files import resolve
from bench.client import Client, Target, first_model, open_http
from bench.records import Ask, BenchError

START_SECONDS = 180.0
# Time from SIGTERM to SIGKILL.
STOP_SECONDS = 10.0
# A server is quiet if it used at most QUIET_CORES cores during this window.
QUIET_WINDOW_SECONDS = 0.25
QUIET_CORES = 0.2
MAX_LINE_CHARS = 300
# The user's settings would change a server, so variables with these prefixes are not passed on.
FOREIGN_PREFIXES = ("CORTEX_", "LLAMA_ARG_")

WARM_UP = Ask(({"role": "user", "content": "Say hello."},), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One server: how to start it, and the fields of its requests. Without a command, it already runs."""

    name: str
    url: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # e.g. for a server without ignore_eos
    note: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of a server's processes so far, and the memory that they hold now."""

    cpu_s: float
    memory_bytes: int
    is_ours: bool = False
    """True for the bare loop, which runs in this process."""


class Server:
    """A server's process with its descendants. `start` may be called again after it ended or was stopped."""

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
        """The id of the process that was started. Raises BenchError if none runs."""
        if self._process is None:
            raise BenchError(f"{self.spec.name} does not run")
        return self._process.pid

    async def start(self, within: float = START_SECONDS) -> None:
        """Returns when it has answered a request. Raises BenchError if it does not in `within` seconds, or ends."""
        self.model = ""
        if self.spec.command:
            await self.stop()
            self._process = await self._open()
        error = ""
        async with open_http(None, within) as http:
            with trio.move_on_after(within):
                while True:
                    try:
                        self.model = await self._warm_up(http, within)
                    except BenchError as refusal:  # it may still be loading
                        error = str(refusal)
                    else:
                        return
                    if not self.alive:
                        break
                    await trio.sleep(0.1)
        trouble = self.exit_message() or f"{self.spec.name} does not answer: {error}"
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
                    start_new_session=True,  # no Ctrl-C reaches it, and the whole group can be stopped
                )
            except OSError as error:
                raise BenchError(f"cannot start {self.spec.name}: {error}") from error

    async def _warm_up(self, http: AsyncClient, seconds: float) -> str:
        """Sends one short request. Returns the name of the model."""
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

    def exit_message(self) -> str:
        """The exit code and the last line of the log; empty while it runs."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return ""
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"{self.spec.name} ended with exit code {code}; last log line: {last[:MAX_LINE_CHARS]}"

    def usage(self) -> Usage:
        cpu, memory = 0.0, 0
        for process in self._members():
            with suppress(psutil.Error):
                times = process.cpu_times()
                cpu += times.user + times.system
                memory += _own_memory(process)
        return Usage(cpu, memory)

    async def quiet(self, within: float) -> bool:
        """Waits until it is idle. Returns False if it still computes after `within` seconds."""
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
        """Stops the whole process group, with SIGKILL if necessary. Cancellation does not interrupt it."""
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
            for member in members:  # it may have left the group
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


@asynccontextmanager
async def running(
    specs: Sequence[Spec], logs: Path, print_line: Callable[[str], object]
) -> AsyncIterator[list[Server]]:
    """Starts the servers and always stops them. A server that cannot start is started again for its first block."""
    servers = [Server(spec, logs / f"{spec.name}.log") for spec in specs]
    try:
        for server in servers:
            print_line(f"starting {server.spec.name}")
            try:
                await server.start()
            except BenchError as error:
                print_line(str(error))
        yield servers
    finally:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            for server in servers:
                nursery.start_soon(server.stop)


def _own_memory(process: psutil.Process) -> int:
    """Bytes. On Linux, pages that processes share, such as those of a mapped model, count once in total."""
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
    """Unused loopback ports. All are bound at the same time, so that no two are the same."""
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


@contextmanager
def scratch_server(model: str, flags: str) -> Iterator[Server]:
    """Cortex with a home of its own that the block's end removes. The caller starts it.

    Raises ModelFilesError if there is no such model.
    """
    with TemporaryDirectory(prefix="cortex-bench-") as home:
        (port,) = free_ports(1)
        spec = Spec(
            name="cortex",
            url=f"http://127.0.0.1:{port}/v1",
            command=(
                *(str(Path(sys.executable).with_name("cortex")), "serve", str(resolve(model))),
                *("--host", "127.0.0.1", "--port", str(port), *shlex.split(flags)),
            ),
            environment={"CORTEX_HOME": home},
        )
        yield Server(spec, Path(home) / "log")
