"""Real servers: each is a `cortex serve` process with its own process group, home folder and free port."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

MODEL = "smollm2:135m"
SECONDS = 120.0
"""Longer than any wait in these tests, even on a busy machine."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: still not after {seconds:.0f} s"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stops the process during the block. It continues after the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


PATIENT = f"""
import sys
from api.engine import process as engine
from api.http import server
from api.protocols import resumable
engine.END_LIMIT = server.FLUSH_SECONDS = server.KEEP_ALIVE_SECONDS = resumable.HOLD_SECONDS = {10 * SECONDS}
from api.command.cli import main
sys.argv[0] = "cortex"
main()
"""
"""The `cortex` command with delays that are longer than any test waits: of its end, and for lost clients."""


class CortexServer:
    """A `cortex serve` process that runs during a `with` block."""

    def __init__(self, home: Path, *flags: str, model: str = MODEL, is_patient: bool = False) -> None:
        """One thread: llama.cpp's threads wait for each other, which is slow while tests run in parallel."""
        self.home = home
        self.model = model
        self._flags = flags
        executable = str(Path(sys.executable).with_name("cortex"))
        self._command = [sys.executable, "-P", "-c", PATIENT] if is_patient else [executable]
        self._log = home / "log"

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._command, "serve", "--port=0", "--threads=1", *self._flags, self.model],
                cwd=self.home,
                env=environment | {"CORTEX_HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, "the model answers")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        if error is not None:
            error.add_note(f"the server's log:\n{self.log}")

    def _kill(self) -> None:
        """Kills the whole process group, including an engine whose server is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended:\n{self.log}"
        with suppress(OSError, ValueError, httpx.TransportError):
            record = json.loads((self.home / "server.json").read_text())
            self.port = int(record["port"])
            return bool(self.health()["status"] == "ok")
        return False

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def owner(self) -> dict[str, str]:
        """The headers of a request by the server's owner."""
        return {"Authorization": f"Bearer {(self.home / 'owner.secret').read_text().strip()}"}

    def health(self, model: str | None = None) -> dict[str, Any]:
        """The health of one model, by default the one the server was started with; `status` is the server's."""
        url = f"http://127.0.0.1:{self.port}/healthz"
        body = httpx.get(url, headers=self.owner, timeout=SECONDS, verify=False).json()
        found: dict[str, Any] = next(each for each in body["models"] if each["model"] == (model or self.model))
        return found | {"status": body["status"]}

    def statistics(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The statistics of the scheduler and of the cache. Waits until nothing runs."""
        wait_until(self._is_idle, "everything has ended")
        return self._statistics["scheduler"], self._statistics["cache"]

    def _is_idle(self) -> bool:
        asked = time.monotonic()
        health = self.health()
        self._statistics: dict[str, Any] = health["statistics"]
        if not self._statistics or health["statistics_age"] > time.monotonic() - asked:
            return False  # these are the previous statistics
        return bool(health["running"] == health["waiting"] == 0)

    def stop(self, *, seconds: float = SECONDS) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def assert_nothing_is_held(self) -> None:
        _, cache = self.statistics()
        assert cache["held_pages"] == 0
        assert cache["free_pages"] + cache["cached_pages"] == cache["pages"]
        assert cache["running_ids"] == 0
        assert cache["free_ids"] + cache["cached_ids"] == cache["sequence_ids"]
