"""Memory is sampled while users come and go."""

from pathlib import Path
from random import Random

from bench.memory import Course, Sample, draw, measure
from bench.servers import Server
from tests.bench.test_servers import spec


async def test_all_phases_are_played_and_memory_is_sampled(tmp_path: Path) -> None:
    server = Server(spec(), tmp_path / "log")
    lines: list[str] = []
    course = await measure(server, [(1, 1), (3, 4)], turns=2, idle=0.0, rng=Random(1), print_line=lines.append)
    assert lines == ["1 users, 1 conversations", "3 users, 4 conversations"]
    assert course.errors == 0
    assert course.answer_tokens > 0
    assert not server.alive


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    samples = [Sample(float(second), 1, 1 << 28, 4096, 1 << 18, 0, 0, 0) for second in range(3)]
    draw(Course(1.0, samples), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
