"""Nodes as child processes, and the way of requests to them. A small program stands in for `cortex`."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from pydantic import ValidationError

from deploy.ray.headers import first
from deploy.ray.node import Call, Forwarder, Head, NodeGoneError, Patience, Piece
from deploy.ray.process import NodeProcess, NodeStartError, claim_home, is_ready
from deploy.ray.settings import Settings

SECONDS = 30.0
FAKE = (sys.executable, str(Path(__file__).with_name("fake_node.py")))


@contextlib.contextmanager
def node(homes: Path, model: str = "echo", **settings: Any) -> Iterator[NodeProcess]:
    process = NodeProcess(model, homes, program=FAKE, **settings)
    process.start(SECONDS)
    try:
        yield process
    finally:
        process.stop()


def forward(process: NodeProcess, call: Call) -> list[Piece]:
    async def run() -> list[Piece]:
        return [piece async for piece in Forwarder(process.socket).forward(call)]

    return asyncio.run(run())


def test_a_request_and_its_answer_pass_unchanged(tmp_path: Path) -> None:
    call = Call("POST", "/v1/a%20b?x=1", ((b"host", b"example"), (b"x-one", b"1"), (b"x-one", b"2")), b'{"a": 1}')
    with node(tmp_path, arguments=["--auth"], grace_seconds=7) as process:
        accepted, head, *body = forward(process, call)
    assert accepted is None
    assert isinstance(head, Head)
    assert (head.status, first(head.headers, b"x-from")) == (418, b"node")
    assert first(head.headers, b"keep-alive") is None
    got = orjson.loads(b"".join(piece for piece in body if isinstance(piece, bytes)))
    assert got["path"] == "/v1/a%20b?x=1"
    assert got["body"] == '{"a": 1}'
    names = [name.lower() for name, _ in got["headers"]]
    assert names == ["host", "x-one", "x-one", "content-length"]
    assert got["home"] == str(tmp_path / "node-0")
    assert {"serve", "--grace=7", "--auth"} <= set(got["arguments"])


def test_a_node_that_ends_is_reported_and_gone(tmp_path: Path) -> None:
    died = threading.Event()
    with node(tmp_path, on_death=died.set) as process:
        with pytest.raises(NodeGoneError):
            forward(process, Call("POST", "/die", (), b""))
        assert died.wait(SECONDS)
        with pytest.raises(NodeGoneError):
            forward(process, Call("GET", "/", (), b""))


def test_a_node_that_is_stopped_is_not_reported(tmp_path: Path) -> None:
    died = threading.Event()
    with node(tmp_path, on_death=died.set):
        pass
    assert not died.is_set()


def test_health_follows_the_node(tmp_path: Path) -> None:
    with node(tmp_path) as process:
        assert is_ready(process.socket)
    assert not is_ready(process.socket)


@pytest.mark.parametrize(
    ("model", "within", "reason"), [("dies", SECONDS, "no such model"), ("loads", 0.5, "not ready after")]
)
def test_a_node_that_does_not_start_says_why(tmp_path: Path, model: str, within: float, reason: str) -> None:
    process = NodeProcess(model, tmp_path, program=FAKE)
    with pytest.raises(NodeStartError, match=reason):
        process.start(within)


def test_a_home_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeStartError, match="too long"):
        NodeProcess("echo", tmp_path / ("x" * 100), program=FAKE)


def test_nodes_of_a_machine_have_different_homes_and_leave_them(tmp_path: Path) -> None:
    first_home, first_lock = claim_home(tmp_path)
    second_home, second_lock = claim_home(tmp_path)
    assert first_home != second_home
    first_lock.close()
    again, lock = claim_home(tmp_path)
    assert again == first_home
    second_lock.close()
    lock.close()


def test_a_node_ends_with_its_replica(tmp_path: Path) -> None:
    """The kernel ends it, so this works on Linux only."""
    script = f"""
import sys, time
from pathlib import Path
from deploy.ray.process import NodeProcess
process = NodeProcess("echo", Path({str(tmp_path)!r}), program={FAKE!r})
process.start({SECONDS})
print(process._process.pid, flush=True)
time.sleep({SECONDS})
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as replica:
        assert replica.stdout is not None
        child = psutil.Process(int(replica.stdout.readline()))
        os.kill(replica.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.wait(SECONDS)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_short_illness_is_no_reason_to_replace_a_node() -> None:
    now = 0.0
    patience = Patience(30.0, lambda: now)
    assert not patience.is_exhausted(healthy=False)
    now = 29.0
    assert not patience.is_exhausted(healthy=False)
    assert not patience.is_exhausted(healthy=True)
    now = 50.0
    assert not patience.is_exhausted(healthy=False)
    now = 80.0
    assert patience.is_exhausted(healthy=False)


def test_settings_are_checked() -> None:
    settings = Settings.model_validate({"model": "m", "num_cpus": "4", "arguments": ["--auth"]})
    assert settings.node_arguments == ["--threads=4", "--auth"]
    assert Settings(model="m", num_cpus=0.5).node_arguments == []
    assert Settings(model="m", arguments=["--threads=2"]).node_arguments == ["--threads=2"]
    for wrong in ({}, {"model": "m", "replicas": 3}, {"model": "m", "min_replicas": 3}):
        with pytest.raises(ValidationError):
            Settings.model_validate(wrong)
