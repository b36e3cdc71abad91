"""The throughput of a server beside programs that keep cores busy, compared with its throughput alone."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from bench.client import Client, open_http
from bench.load import once
from bench.records import BenchError
from bench.servers import Server
from bench.stats import Measures, ratio, summarize
from bench.workloads import Settings, resolve

TIME_LIMIT = 300.0
"""Seconds for one request."""
BUSY_LOOP = (sys.executable, "-c", "while True: pass")


@dataclass(frozen=True, slots=True)
class Crowded:
    """One repetition: output tokens per second alone, and beside one, two, ... busy programs."""

    tokens_per_s: list[float]

    def measures(self) -> Measures:
        alone, *others = self.tokens_per_s
        rates: Measures = {"alone_tokens_per_s": alone}
        for count, each in enumerate(others, 1):
            rates |= {f"beside_{count}_tokens_per_s": each, f"beside_{count}_ratio": ratio(each, alone)}
        return rates


async def measure(
    server: Server,
    *,
    users: int,
    programs: int,
    repeat: int,
    seed: int,
    print_line: Callable[[str], object],
) -> list[Crowded]:
    """Runs `users` users on a server alone, then beside 1 to `programs` busy programs, `repeat` times.

    Stops the server at the end. Raises BenchError if the server or a request fails.
    """
    settings = resolve(Settings(workload="uniform", users=users))
    done = []
    try:
        await server.start()
        await _rate(server, settings, Random(f"{seed}/warm-up"))
        for number in range(repeat):
            rates = []
            for count in range(programs + 1):
                with _busy(count):
                    rates.append(await _rate(server, settings, Random(f"{seed}/{number}/{count}")))
            done.append(Crowded(rates))
            beside = ", ".join(f"beside {count}: {rate:.1f}" for count, rate in enumerate(rates))
            print_line(f"{number + 1} of {repeat}: tokens/s {beside}")
    finally:
        await server.stop()
    return done


async def _rate(server: Server, settings: Settings, rng: Random) -> float:
    async with open_http(None, TIME_LIMIT) as http:
        repetition = await once(settings, rng, Client(http, server.target(TIME_LIMIT)).chat)
    failed = next((record.error for record in repetition.records if record.error is not None), None)
    rate = summarize(repetition.records).tokens_per_s
    if failed is not None or rate is None:
        raise BenchError(f"{server.spec.name}: {failed or 'no tokens'}")
    return rate


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Runs `count` busy loops of normal priority."""
    programs = [subprocess.Popen(BUSY_LOOP) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
        for program in programs:
            program.wait()
