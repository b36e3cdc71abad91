"""A server is measured alone and beside busy programs, in turn."""

import sys
from pathlib import Path

import psutil
import pytest

from bench import crowded
from bench.crowded import Crowded, measure
from bench.records import BenchError
from bench.servers import Server, Spec
from tests.bench.fakes import free_port
from tests.bench.test_servers import FAKE


def test_the_ratios_compare_with_the_server_alone() -> None:
    assert Crowded([10.0, 6.0, 4.0]).measures() == {
        "alone_tokens_per_s": 10.0,
        "beside_1_tokens_per_s": 6.0,
        "beside_1_ratio": 0.6,
        "beside_2_tokens_per_s": 4.0,
        "beside_2_ratio": 0.4,
    }


async def test_busy_programs_run_only_while_their_part_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = (sys.executable, "-c", "import signal; signal.pause()")  # busy loops would disturb other tests
    monkeypatch.setattr(crowded, "BUSY_LOOP", waiting)
    counts = []
    rate = crowded._rate

    async def counting(*arguments: object) -> float:
        counts.append(sum(child.cmdline()[1:] == list(waiting[1:]) for child in psutil.Process().children()))
        return await rate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(crowded, "_rate", counting)
    port = free_port()
    spec = Spec(name="fake", url=f"http://127.0.0.1:{port}/v1", command=(sys.executable, str(FAKE), str(port)))
    lines: list[str] = []
    done = await measure(Server(spec, tmp_path / "log"), users=2, programs=2, repeat=2, seed=1, print_line=lines.append)
    assert len(done) == len(lines) == 2
    assert counts == [0, 0, 1, 2, 0, 1, 2]
    assert all(rate > 0 for each in done for rate in each.tokens_per_s)


async def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no model')")
    server = Server(Spec(name="broken", url="http://127.0.0.1:9/v1", command=command), tmp_path / "log")
    with pytest.raises(BenchError, match="broken ended with exit code 1"):
        await measure(server, users=1, programs=1, repeat=1, seed=1, print_line=lambda _: None)
