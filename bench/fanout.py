"""The throughput of the API process alone, on one core: it streams tokens from an engine whose model is a clock.

`python -m bench.fanout MODEL PORT SECONDS` runs that server, with steps of SECONDS. `measure` reads its streams.
"""

import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import orjson
import psutil
import trio

from bench.records import BenchError
from bench.servers import Server
from bench.stats import Measures

PROMPT = "Count as far as you can."
TIME_LIMIT = 120.0
"""Seconds for all streams of one repetition."""


@dataclass(frozen=True, slots=True)
class Fanout:
    """One repetition."""

    num_tokens: int
    seconds: float
    num_reads: int
    gaps: list[float]
    """Seconds between consecutive reads of a stream, sorted."""
    api_cpu_s: float

    def measures(self) -> Measures:
        return {
            "tokens_per_s": self.num_tokens / self.seconds,
            "tokens_per_read": self.num_tokens / self.num_reads,
            "gap_p50_s": median(self.gaps),
            "gap_p99_s": quantiles(self.gaps, n=100)[98],
            "api_cpu_us_per_token": 1e6 * self.api_cpu_s / self.num_tokens,
        }


@dataclass(slots=True)
class _Stream:
    num_tokens: int = 0
    ended_at: float = 0.0
    arrivals: list[float] | None = None


def command(model_path: Path, port: int, step_seconds: float) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "bench.fanout", str(model_path), str(port), str(step_seconds))


async def measure(server: Server, port: int, *, streams: int, output_tokens: int) -> Fanout:
    """One repetition on a running server. Raises BenchError if a stream fails or does not end within TIME_LIMIT."""
    api = psutil.Process(server.pid)
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    before, started = api.cpu_times(), trio.current_time()
    records = [_Stream() for _ in range(streams)]
    with trio.move_on_after(TIME_LIMIT) as limit:
        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(_read, record, port, orjson.dumps(body))
    if limit.cancelled_caught:
        raise BenchError(f"the streams did not end within {TIME_LIMIT:.0f} s")
    after = api.cpu_times()
    arrivals = [record.arrivals or [] for record in records]
    return Fanout(
        num_tokens=sum(record.num_tokens for record in records),
        seconds=max(record.ended_at for record in records) - started,
        num_reads=sum(map(len, arrivals)),
        gaps=sorted(later - earlier for each in arrivals for earlier, later in pairwise(each)),
        api_cpu_s=after.user + after.system - before.user - before.system,
    )


async def repeat(server: Server, port: int, *, streams: int, output_tokens: int, times: int) -> list[Fanout]:
    """Starts the server, runs `times` repetitions and stops it. Raises BenchError if the server or a stream fails."""
    try:
        await server.start()
        return [await measure(server, port, streams=streams, output_tokens=output_tokens) for _ in range(times)]
    finally:
        await server.stop()


async def _read(record: _Stream, port: int, body: bytes) -> None:
    """Sends HTTP without a client library, which would use more CPU than the server."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    tail = b""
    record.arrivals = []
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        while data := await stream.receive_some():
            record.arrivals.append(trio.current_time())
            tail = (tail + data)[-2000:]
    record.ended_at = trio.current_time()
    if b"data: [DONE]" not in tail:
        raise BenchError(f"a stream ended early: {tail[-200:].decode(errors='replace')}")
    usage = tail[tail.rindex(b'"completion_tokens":') :].split(b":")[1]
    record.num_tokens = int(usage.split(b",")[0])


def main() -> int:
    from api.flags import ModelOptions, ServerOptions
    from api.http.server import serve
    from scheduler.config import EngineConfig

    model, port, seconds = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    options = ServerOptions(ModelOptions("clock", Path(model), EngineConfig(model_path=model)), port=int(port))
    return serve(options, engine_command=(sys.executable, "-P", "-m", "bench.paced_engine", seconds))


if __name__ == "__main__":
    sys.exit(main())
