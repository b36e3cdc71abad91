"""The nodes: starts them, reads their counters, and ends one of them while it is under load."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

from bench.client import open_http
from bench.cluster.accounting import Counts
from bench.cluster.routers import Behind
from bench.peers import Common, cortex
from bench.records import BenchError
from bench.servers import Server, free_ports

READ_SECONDS: Final = 5.0
LAST_READING_SECONDS: Final = 0.5
"""Between two readings while a node may end: afterwards it cannot be asked."""

End = Literal["kill", "drain"]


class Node:
    """A `cortex serve` with a folder of its own."""

    def __init__(self, common: Common, number: int, flags: Sequence[str], *, events: bool) -> None:
        port, events_port, replay_port = free_ports(3)
        name = f"node{number}"
        self._root = f"http://127.0.0.1:{port}"
        self.behind = Behind(url=self._root)
        if events:
            publish, replay = (f"tcp://127.0.0.1:{each}" for each in (events_port, replay_port))
            self.behind = Behind(url=self._root, events=publish, replay=replay)
            flags = (*flags, "--kv-events", publish, "--kv-events-replay", replay)
        home = common.scratch / name
        home.mkdir()
        self.server = Server(cortex(common, port, name, flags), home / "log")
        self.counts = Counts()
        """As of the last reading."""
        self._is_ending = False

    async def read(self) -> Counts:
        """Reads its counters. A node that cannot be asked any more keeps those of the last reading."""
        try:
            async with open_http(None, READ_SECONDS) as http:
                response = await http.get(f"{self._root}/metrics")
                response.raise_for_status()
            self.counts = counts_of(response.text)
        except httpx.HTTPError:
            if self.server.alive and not self._is_ending:
                raise BenchError(f"{self.server.spec.name} does not answer /metrics") from None
        return self.counts

    async def watch(self) -> None:
        """Reads its counters until it has ended. Cancellation does not interrupt a reading."""
        while self.server.alive:
            with trio.CancelScope(shield=True):
                await self.read()
            await trio.sleep(LAST_READING_SECONDS)

    def end(self, how: End) -> None:
        """Kills all its processes at once, as if its machine lost power, or asks it to drain."""
        self._is_ending = True
        if how == "kill":
            os.killpg(self.server.pid, signal.SIGKILL)
        else:
            os.kill(self.server.pid, signal.SIGTERM)


async def start(nodes: Sequence[Node]) -> None:
    """Returns when all have answered a request. Raises BenchError if one does not."""
    failures: list[BenchError] = []

    async def one(node: Node) -> None:
        try:
            await node.server.start()
        except BenchError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(one, node)
    if failures:
        raise failures[0]


def counts_of(metrics: str) -> Counts:
    """Reads the counters of a node's /metrics."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return Counts(
        requests=int(totals.get("vllm:request_success_total", 0)),
        prompt_tokens=int(totals.get("vllm:prompt_tokens_total", 0)),
        computed_tokens=int(totals.get("cortex_prefill_tokens_total", 0)),
    )


def common(model_path: Path, threads: int, scratch: Path) -> Common:
    """What all nodes share. Their context is Cortex's default."""
    return Common(model_path=model_path, threads=threads, context=0, scratch=scratch, extra={}, end_tokens=list)
