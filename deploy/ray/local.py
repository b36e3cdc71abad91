"""The application of `python -m deploy.ray` as a child process, for checks and measurements on this machine."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 60.0
NODE_FLAG: Final = "--unix-socket="


@dataclass(frozen=True, slots=True)
class NodePlace:
    """A running node."""

    process: psutil.Process
    socket: str

    def get(self, path: str) -> str:
        """The answer of the node itself, not through Serve."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), timeout=10) as http:
            return http.get(f"http://localhost{path}").raise_for_status().text


class Cluster:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = psutil.Process(process.pid)
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def nodes(self) -> list[NodePlace]:
        """The nodes that run now, whether they are ready or not."""
        found = []
        for process in self.processes():
            try:
                arguments = process.cmdline()
            except psutil.Error:
                continue
            sockets = [each.removeprefix(NODE_FLAG) for each in arguments if each.startswith(NODE_FLAG)]
            if sockets and "launcher.py" not in " ".join(arguments):
                found.append(NodePlace(process, sockets[0]))
        return found

    def processes(self) -> list[psutil.Process]:
        """All processes of Ray and of the nodes, engines included."""
        return self._process.children(recursive=True)

    def num_ready(self) -> int:
        """Nodes that are ready."""
        return sum(_is_ready(node) for node in self.nodes())


def _is_ready(node: NodePlace) -> bool:
    try:
        node.get("/health")
    except httpx.HTTPError:
        return False
    return True


def metric(node: NodePlace, name: str) -> float:
    """A counter or a gauge of a node, summed over its labels."""
    lines = node.get("/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name}_total{{")))


@contextmanager
def cluster(model: str, log: Path, *arguments: str) -> Iterator[Cluster]:
    """Starts Ray, Serve and the nodes, and stops them at the end. Raises RuntimeError if they do not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deploy.ray", f"--port={port}", *arguments, model]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"==> " not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the application did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        yield Cluster(process, port)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
