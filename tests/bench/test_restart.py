"""Each turn of a conversation is sent to a server that has just started."""

import sys
from pathlib import Path
from random import Random

import pytest

from bench.records import BenchError
from bench.restart import measure
from bench.servers import Server, Spec
from tests.bench.fakes import SECONDS, free_port
from tests.bench.test_servers import FAKE


class CountingServer(Server):
    num_starts = 0

    async def start(self, within: float = SECONDS) -> None:
        self.num_starts += 1
        await super().start(within)


def fake(tmp_path: Path, *flags: str) -> CountingServer:
    port = free_port()
    command = (sys.executable, str(FAKE), str(port), *flags)
    return CountingServer(Spec(name="fake", url=f"http://127.0.0.1:{port}/v1", command=command), tmp_path / "log")


async def test_every_turn_has_a_new_server_process(tmp_path: Path) -> None:
    server = fake(tmp_path)
    lines: list[str] = []
    restarts = await measure(server, 300, repeat=2, rng=Random(1), print_line=lines.append)
    assert server.num_starts == 4
    assert not server.usage().cpu_s, "not stopped at the end"
    assert len(restarts) == len(lines) == 2
    for restart in restarts:
        figures = restart.measures()
        assert figures["ratio"] == pytest.approx(restart.next.ttft_s / restart.cold.ttft_s)


async def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no model')")
    server = Server(Spec(name="broken", url="http://127.0.0.1:9/v1", command=command), tmp_path / "log")
    with pytest.raises(BenchError, match="broken ended with exit code 1"):
        await measure(server, 300, repeat=1, rng=Random(1), print_line=lambda _: None)
