"""Servers as processes: a small command that answers, exits, or ignores SIGTERM."""

import os
import sys
from pathlib import Path

import pytest
import trio
from httpx import AsyncClient
from trio.testing import MockClock

from bench import servers
from bench.client import first_model
from bench.records import BenchError
from bench.servers import Server, Spec, free_ports, running
from bench.signals import until_signal
from tests.api.servers import is_gone
from tests.bench.fakes import SECONDS, free_port

FAKE = Path(__file__).with_name("fake_server.py")


def spec(*how: str, name: str = "fake") -> Spec:
    port = free_port()
    return Spec(name=name, url=f"http://127.0.0.1:{port}/v1", command=(sys.executable, str(FAKE), str(port), *how))


async def test_a_server_is_measured_and_stopped_with_its_children(tmp_path: Path) -> None:
    server = Server(spec("parent", str(tmp_path / "pid")), tmp_path / "log")
    await server.start()
    child = int((tmp_path / "pid").read_text())
    assert (server.alive, server.model) == (True, "fake")
    usage = server.usage()
    assert usage.cpu_s > 0
    assert usage.memory_bytes > 1 << 20
    assert await server.quiet(SECONDS)
    await server.stop()
    assert not server.alive
    assert is_gone(child)
    await server.stop()


async def test_a_server_can_be_started_again(tmp_path: Path) -> None:
    server = Server(spec(), tmp_path / "log")
    for _ in range(2):
        await server.start()
        assert server.alive
    await server.stop()


async def test_the_error_of_a_server_that_exits_has_its_last_log_line(tmp_path: Path) -> None:
    server = Server(spec("dies", name="poor"), tmp_path / "log")
    with pytest.raises(BenchError, match="poor ended with exit code 3; last log line: no memory left"):
        await server.start()
    assert not server.alive


async def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    server = Server(Spec(name="none", url="http://127.0.0.1:9/v1", command=("/nowhere/server",)), tmp_path / "log")
    with pytest.raises(BenchError, match="cannot start none"):
        await server.start()


async def test_a_server_that_does_not_answer_in_time_is_an_error(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.rate = 1.0
    num_calls = 0

    async def ask(http: AsyncClient, url: str) -> str:
        nonlocal num_calls
        num_calls += 1
        try:
            return await first_model(http, url)
        finally:
            mock_clock.jump(SECONDS)

    monkeypatch.setattr(servers, "first_model", ask)
    server = Server(Spec(name="silent", url=f"http://127.0.0.1:{free_port()}/v1"), tmp_path / "log")
    with pytest.raises(BenchError, match="silent does not answer: cannot read"):
        await server.start(2.5 * SECONDS)
    assert num_calls == 3


async def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.1)
    server = Server(spec("stays"), tmp_path / "log")
    await server.start()
    await server.stop()
    assert not server.alive


async def test_a_server_does_not_get_the_users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_BATCH", "1")
    monkeypatch.setenv("CORTEX_PORT", "1")
    server = Server(spec(), tmp_path / "log")
    await server.start()
    await server.stop()
    assert (tmp_path / "log").read_text().startswith("[]\n")


async def test_a_signal_stops_the_servers_and_not_the_program(tmp_path: Path) -> None:
    lines: list[str] = []
    async with until_signal(lines.append) as scope, running([spec(), spec("dies")], tmp_path, lines.append) as started:
        assert [server.alive for server in started] == [True, False]
        os.kill(os.getpid(), 15)
        await trio.sleep(SECONDS)
    assert scope.cancelled_caught
    assert not started[0].alive
    assert lines[-1] == "SIGTERM: stopping the servers"


async def test_an_error_is_raised_without_a_group(tmp_path: Path) -> None:
    async def fail() -> None:
        async with until_signal(print), running([spec()], tmp_path, lambda _: None) as started:
            servers_started.extend(started)
            raise BenchError("no more")

    servers_started: list[Server] = []
    with pytest.raises(BenchError, match="no more"):
        await fail()
    assert [server.alive for server in servers_started] == [False]


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(8))) == 8
