"""A Cortex node as a child process: `cortex serve` on a Unix socket, with a home of its own."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TextIO

POLL_SECONDS: Final = 0.1
STOP_SECONDS: Final = 10.0
"""How long an ending node may take beyond its grace period."""
HEALTH_SECONDS: Final = 5.0
LOG_LINES: Final = 10
MAX_SOCKET_BYTES: Final = 103  # of a path; macOS allows no more
CORTEX: Final = (sys.executable, "-P", "-m", "api")
# -P: Python must not import a folder named `api` in the working directory.
LAUNCHER: Final = (sys.executable, "-P", str(Path(__file__).with_name("launcher.py")))


class NodeStartError(Exception):
    """The node has ended or is not ready in time. The message has the end of its log."""


def claim_home(homes: Path) -> tuple[Path, TextIO]:
    """The first home that no other node of this machine has, and its lock.

    A node that replaces another one finds its models and its disk tier. The home is taken as long as the lock is open
    in this process or in a child.
    """
    homes.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        home = homes / f"node-{number}"
        lock = home.with_suffix(".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            number += 1
            continue
        home.mkdir(exist_ok=True)
        return home, lock


class NodeProcess:
    """Starts a node, watches it and stops it. It also ends when this process has ended."""

    def __init__(
        self,
        model: str,
        homes: Path,
        *,
        arguments: Sequence[str] = (),
        grace_seconds: float = 30.0,
        on_death: Callable[[], object] = lambda: None,
        program: Sequence[str] = CORTEX,
    ) -> None:
        """`on_death` is called by a thread if the node was ready and ends before `stop`.

        Raises NodeStartError if the path of `homes` is too long.
        """
        if len(os.fsencode(homes / "node-000" / "socket")) > MAX_SOCKET_BYTES:
            raise NodeStartError(f"the path {homes} is too long for Unix sockets in it")
        self.home, self._lock = claim_home(homes)
        self.socket = self.home / "socket"
        self.log = self.home / "node.log"
        self._grace_seconds = grace_seconds
        self._on_death = on_death
        flags = (f"--unix-socket={self.socket}", f"--grace={grace_seconds:g}", *arguments)
        self._command = [*LAUNCHER, str(os.getpid()), *program, "serve", *flags, "--", model]
        self._process: subprocess.Popen[bytes] | None = None
        self._opened = threading.Event()
        self._served = False
        self._stopping = False
        # The kernel's signal at the end of the parent is bound to the thread that has started the child.
        self._watcher = threading.Thread(target=self._watch, name="node", daemon=True)

    def start(self, within: float) -> None:
        """Returns when the node is ready. Raises NodeStartError if it is not in `within` seconds, or ends."""
        self._watcher.start()
        self._opened.wait()
        deadline = time.monotonic() + within
        while not is_ready(self.socket):
            if not self._watcher.is_alive() or time.monotonic() > deadline:
                what = f"is not ready after {within:.0f} s" if self._watcher.is_alive() else "has ended"
                self.stop()
                raise NodeStartError(f"the node {what}; the end of {self.log}:\n{self._last_lines()}")
            time.sleep(POLL_SECONDS)
        self._served = True

    def stop(self) -> None:
        """Lets running answers finish within the grace period, then ends the node."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(self._grace_seconds + STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._lock.close()

    def _watch(self) -> None:
        environment = os.environ | {"CORTEX_HOME": str(self.home)}
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(self._lock.fileno(),),
                )
        finally:
            self._opened.set()
        self._process.wait()
        if self._served and not self._stopping:
            self._on_death()

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def is_ready(path: Path) -> bool:
    """Whether the server at a Unix socket answers `GET /health` with 200. Blocks for HEALTH_SECONDS at most."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(HEALTH_SECONDS)
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.makefile("rb").readline().split()[1:2] == [b"200"]
    except OSError:
        return False
