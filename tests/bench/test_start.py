"""Each counted start is one of a new process, and a server that fails is an error."""

import sys
from pathlib import Path

import pytest

from bench.records import BenchError
from bench.servers import Server, Spec
from bench.start import measure
from tests.bench.test_restart import fake


async def test_starts_are_counted_from_the_second_on(tmp_path: Path) -> None:
    server = fake(tmp_path)
    lines: list[str] = []
    measured = await measure([server], repeat=2, print_line=lines.append)
    assert server.num_starts == 3
    assert not server.alive
    starts = measured["fake"]
    assert len(starts) == len(lines) == 2
    assert all(start.seconds > 0 and start.memory_bytes > 1 << 20 for start in starts)
    assert starts[0].measures() == {"seconds": starts[0].seconds, "memory_bytes": float(starts[0].memory_bytes)}


async def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no model')")
    server = Server(Spec(name="broken", url="http://127.0.0.1:9/v1", command=command), tmp_path / "log")
    with pytest.raises(BenchError, match="broken ended with exit code 1"):
        await measure([server], repeat=1, print_line=lambda _: None)
