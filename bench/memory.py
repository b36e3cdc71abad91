"""Memory that follows the load: one user, then many, then one again, and then nobody."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from random import Random

import httpx
import trio

from bench.client import Client, open_http
from bench.load import closed_loop
from bench.records import BenchError, Record
from bench.servers import Server
from bench.workloads import Settings, multiturn, resolve

INTERVAL = 0.5
"""Seconds between two samples."""
TIME_LIMIT = 600.0
"""Seconds for one request."""


@dataclass(frozen=True, slots=True)
class Sample:
    seconds: float
    """Since the server had answered its first request."""
    users: int
    memory_bytes: int
    """Of all processes of the server, shared pages counted by their share."""
    kv_tokens: int
    kv_max: int
    grows: int
    shrinks: int
    hit_tokens: int


@dataclass(slots=True)
class Course:
    """A whole run."""

    start_s: float
    """From the start of the server to its first answer."""
    samples: list[Sample] = field(default_factory=list)
    errors: int = 0
    answer_tokens: int = 0
    longest_gap_s: float = 0.0


async def measure(
    server: Server,
    phases: Sequence[tuple[int, int]],
    *,
    turns: int,
    idle: float,
    rng: Random,
    print_line: Callable[[str], object],
) -> Course:
    """Plays the phases, which are numbers of users and of conversations, then waits for `idle` seconds.

    Starts the server, and stops it at the end. Raises BenchError if it does not start.
    """
    started = time.perf_counter()
    try:
        await server.start()
        course = Course(time.perf_counter() - started)
        async with open_http(None, TIME_LIMIT) as http, trio.open_nursery() as nursery:
            sampler = _Sampler(server, http, course)
            nursery.start_soon(sampler.run)
            for users, conversations in phases:
                sampler.users = users
                print_line(f"{users} users, {conversations} conversations")
                settings = resolve(Settings(workload="multiturn", users=conversations, turns=turns))
                client = Client(http, server.target(TIME_LIMIT))
                _add(course, await closed_loop(multiturn(settings, rng), users, client.chat))
            sampler.users = 0
            await trio.sleep(idle)
            nursery.cancel_scope.cancel()
        return course
    finally:
        await server.stop()


def _add(course: Course, records: Sequence[Record]) -> None:
    for record in records:
        course.errors += record.error is not None
        course.answer_tokens += record.completion_tokens
        gaps = (after - before for before, after in pairwise(record.chunks))
        course.longest_gap_s = max(course.longest_gap_s, *gaps, 0.0)


class _Sampler:
    def __init__(self, server: Server, http: httpx.AsyncClient, course: Course) -> None:
        self._server = server
        self._http = http
        self._course = course
        self._health = server.spec.url.removesuffix("/v1") + "/healthz"
        self.users = 0

    async def run(self) -> None:
        began = time.perf_counter()
        while True:
            with suppress(httpx.HTTPError, KeyError, TypeError):  # the engine may be too busy to report
                [model] = (await self._http.get(self._health)).json()["models"]
                kv, cache = model["kv"], model["statistics"]["cache"]
                self._course.samples.append(
                    Sample(
                        time.perf_counter() - began,
                        self.users,
                        self._server.usage().memory_bytes,
                        kv["tokens"],
                        kv["max_tokens"],
                        kv["grows"],
                        kv["shrinks"],
                        cache["hit_tokens"],
                    )
                )
            await trio.sleep(INTERVAL)


def draw(course: Course, path: Path) -> None:
    """Writes a PNG file. Raises BenchError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise BenchError("no plot: install matplotlib with pip install 'cortex-server[bench]'")
    from matplotlib.figure import Figure  # optional: only reports need it

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = [sample.seconds for sample in course.samples]
    above.plot(times, [sample.memory_bytes / (1 << 30) for sample in course.samples], drawstyle="steps-post")
    above.set_ylabel("memory of all processes, GiB")
    above.set_ylim(bottom=0)
    below.plot(
        times, [sample.kv_tokens for sample in course.samples], drawstyle="steps-post", label="tokens of KV cache"
    )
    below.set_ylabel("tokens of KV cache")
    right = below.twinx()
    right.plot(times, [sample.users for sample in course.samples], color="gray", linestyle=":", label="users")
    right.set_ylabel("users")
    below.set_xlabel("seconds")
    figure.savefig(path, format="png", dpi=120)
