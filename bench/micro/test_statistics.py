"""The cost of being watched: an Inspect between two steps, and what the API records of each output."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from api.serving.metrics import Metrics
from api.serving.metrics.families import of_requests
from api.serving.metrics.metrics import written
from api.serving.observer import RequestRecord
from bench.micro.test_step import ROUNDS, SIZES, decoding
from scheduler.engine import report
from scheduler.messages import Inspect, Message, Output, Report, decode, encode

TENANTS = 100


@SIZES
def test_inspect(benchmark: BenchmarkFixture, num_seqs: int) -> None:
    """What one scrape costs the engine: reading an Inspect, the statistics, and writing the Report. Each sequence has
    its own tenant.

    At one scrape per second, a median step costs more only by the part of the second that this takes: 1% is 10 ms.
    """
    scheduler = decoding(num_seqs, num_tenants=num_seqs)
    line = encode(Inspect())

    def inspect() -> bytes:
        decode(line)
        return encode(report(scheduler))

    answer: Message = decode(benchmark.pedantic(inspect, rounds=ROUNDS, warmup_rounds=5))
    assert isinstance(answer, Report)
    assert answer.scheduler["running"] == num_seqs


def test_record_of_an_output(benchmark: BenchmarkFixture) -> None:
    """What a stream records of each output that it gets."""
    record = RequestRecord()
    record.prepared(prompt_tokens=10, num_sequences=1)
    output = Output(1, [7])
    times = iter(range(10**9))
    benchmark.pedantic(lambda: record.received(0, output, 1, next(times) * 0.02), rounds=ROUNDS, iterations=100)
    assert record.answer_tokens > ROUNDS


@pytest.mark.parametrize("num_open", [0, 64])
def test_text_of_all_requests(benchmark: BenchmarkFixture, num_open: int) -> None:
    """What one scrape costs the API process, with as many tenants as have names."""
    metrics = Metrics()
    for number in range(TENANTS + num_open):
        record = RequestRecord(operation="chat_completions", tenant=f"name-{number}", model="a-model", status=200)
        metrics.requests.began(record)
        record.received(0, Output(number, [1]), 1, 1.0)
        if number < TENANTS:
            record.finish = "stop"
            record.close(2.0)
            metrics.requests.ended(record)
    text = benchmark.pedantic(lambda: written(of_requests(metrics.requests.totals())), rounds=20)
    assert b"vllm:time_to_first_token_seconds_count" in text
