"""The benchmark of the API process, with a real server, a real wire and a clock in place of a model."""

import time
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.fanout import Fanout, measure
from bench.paced_engine import TOKENS, PacedRunner
from bench.records import BenchError
from bench.servers import Server, Spec
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import Chunk, Plan
from scheduler.sequence import Sequence
from tests.bench.fakes import free_port


def test_every_token_of_every_stream_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.servers.free_ports", lambda num: [free_port() for _ in range(num)])
    out = tmp_path / "fanout.json"
    arguments = ["fanout", "--streams", "8", "--output-tokens", "20", "--rate", "50", "--repeat", "2"]
    run = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert run.exit_code == 0, run.output
    kept = orjson.loads(out.read_bytes())
    assert kept["offered_tokens_per_s"] == 400
    assert len(kept["repetitions"]) == 2
    for repetition in [*kept["repetitions"], kept["median"]]:
        assert 0 < repetition["tokens_per_s"] < 400
        assert repetition["api_cpu_us_per_token"] > 0
        assert 0.5 < repetition["tokens_per_read"] <= 20  # some reads at the end of a stream have no token


def test_a_step_takes_its_time_and_samples_ordinary_tokens() -> None:
    started = time.perf_counter()
    runner = PacedRunner(0.02)
    chunks = [Chunk(Sequence(Submit(n, [1, 2], 5, SamplingParams()), n), 0, 2, samples=n != 1) for n in range(3)]
    results = [runner.run(Plan(chunks)) for _ in range(3)]
    assert time.perf_counter() - started >= 0.06
    for result in results:
        assert len(result.tokens) == 2
        assert {token for tokens in result.tokens for token in tokens} <= set(TOKENS)


def test_figures_of_a_repetition() -> None:
    run = Fanout(num_tokens=40, seconds=2.0, num_reads=10, gaps=[0.1] * 98 + [0.2, 0.9], api_cpu_s=0.004)
    measures = run.measures()
    assert measures["tokens_per_s"] == 20
    assert measures["tokens_per_read"] == 4
    assert measures["gap_p50_s"] == pytest.approx(0.1)
    assert measures["gap_p99_s"] == pytest.approx(0.9, abs=0.02)
    assert measures["api_cpu_us_per_token"] == pytest.approx(100)


async def test_a_server_that_does_not_run_cannot_be_measured(tmp_path: Path) -> None:
    server = Server(Spec(name="none", url="http://127.0.0.1:9/v1"), tmp_path / "log")
    with pytest.raises(BenchError, match="none does not run"):
        await measure(server, 9, streams=1, output_tokens=1)
