"""Real servers: `cortex serve` in a process group and a home of its own, on a free port."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

MODEL = "smollm2:135m"
SECONDS = 60.0
"""Nothing here takes so long, even on a machine that is busy."""


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


class CortexServer:
    """`cortex serve` for as long as the `with` block around it lasts."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        self._flags = flags
        self._log = home / "log"

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("cortex")), "serve", "--port=0", *self._flags, MODEL],
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
        """All of its group, an engine that lost its server included."""
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

    def health(self, model: str = MODEL) -> dict[str, Any]:
        """Of the server, and what it says of one of its models."""
        body = httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=SECONDS).json()
        told: dict[str, Any] = next(each for each in body["models"] if each["model"] == model)
        return told | {"status": body["status"]}

    def statistics(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the scheduler and of the cache, with nothing running."""
        wait_until(lambda: self._is_idle(self.health()), "everything has ended")
        statistics = self.health()["statistics"]
        return statistics["scheduler"], statistics["cache"]

    @staticmethod
    def _is_idle(health: dict[str, Any]) -> bool:
        return bool(health["statistics"]) and health["running"] == health["waiting"] == 0

    def stop(self, *, seconds: float = SECONDS) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def assert_nothing_is_held(self) -> None:
        _, cache = self.statistics()
        assert cache["held_pages"] == 0
        assert cache["free_pages"] + cache["cached_pages"] == cache["pages"]
        assert cache["running_ids"] == 0
        assert cache["free_ids"] + cache["cached_ids"] == cache["sequence_ids"]
