"""Plays workloads on one node and on several nodes behind a router, and ends a node under load if asked to."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import trio

from bench.client import Client, open_http
from bench.cluster import routers
from bench.cluster.accounting import ALONE, Counts, Run, compared, outage, times
from bench.cluster.nodes import End, Node, common, start
from bench.cluster.simulated import predicted
from bench.load import Repetition, once
from bench.records import BenchError
from bench.servers import Server, free_ports
from bench.simulation.routing import Thresholds
from bench.talks import common_prefix
from bench.workloads import Settings, sessions

REPORT_SECONDS: Final = 1.5
"""After the last answer, until the counters of an engine are final."""
SETTLE_SECONDS: Final = 5.0
"""After a router knows all nodes, until it has also read their loads. SMG that had just started sent 15 of 16 first
requests to one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. Every run has new nodes and a new router, and the same texts."""

    model_path: Path
    nodes: int
    flags: tuple[str, ...]
    """Of each node."""
    threads: int
    choices: tuple[routers.Choice, ...]
    commands: dict[str, Path]
    """Of each router."""
    router_flags: dict[str, tuple[str, ...]]
    workloads: tuple[Settings, ...]
    seed: str
    ends: tuple[tuple[float, End], ...] = ()
    """When to end a node, in seconds after the start of the load, and how. Each ends another node."""
    time_limit: float = 600.0


async def measure(plan: Plan, print_line: Callable[[str], object]) -> list[Run]:
    """Every policy under every workload, after one node alone. Raises BenchError if a server fails.

    If nodes are to end, one node alone is not measured: the work of an unfinished run cannot be compared.
    """
    runs: list[Run] = []
    for settings in plan.workloads:
        alone = None
        prefix_tokens = shared_prefix(plan, settings)
        for choice in [*([] if plan.ends else [None]), *plan.choices]:
            print_line(f"{settings.workload}: {choice or ALONE}")
            run = await _run(plan, settings, choice)
            if not plan.ends:
                run = predicted(run, settings, choice, _thresholds(plan, choice), plan.seed)
            if choice is None:
                alone = run
            runs.append(run if alone is None or choice is None else compared(run, alone, prefix_tokens))
    return runs


def _thresholds(plan: Plan, choice: routers.Choice | None) -> Thresholds:
    return Thresholds() if choice is None else routers.thresholds(choice, plan.router_flags.get(choice.router, ()))


async def _run(plan: Plan, settings: Settings, choice: routers.Choice | None) -> Run:
    num_nodes = plan.nodes if choice else 1
    with TemporaryDirectory(prefix="cortex-bench-") as scratch:
        shared = common(plan.model_path, plan.threads, Path(scratch))
        nodes = [
            Node(shared, number, plan.flags, events=choice is not None and choice.needs_events)
            for number in range(1, num_nodes + 1)
        ]
        async with AsyncExitStack() as stack:
            for node in nodes:
                stack.push_async_callback(node.server.stop)
            await start(nodes)
            front = nodes[0].server
            if choice is not None:
                front = _router(plan, choice, nodes, Path(scratch))
                stack.push_async_callback(front.stop)
                await front.start()
                await _all_known(front, num_nodes)
                await trio.sleep(SETTLE_SECONDS)
            before = [await node.read() for node in nodes]
            repetition, signals = await _play(plan, settings, front, nodes)
            await trio.sleep(REPORT_SECONDS)
            after = [await node.read() for node in nodes]
    return _result(
        settings, choice, [now.since(then) for now, then in zip(after, before, strict=True)], repetition, signals
    )


def _router(plan: Plan, choice: routers.Choice, nodes: Sequence[Node], folder: Path) -> Server:
    port, metrics_port = free_ports(2)
    behind = [replace(node.behind, model=node.server.model) for node in nodes]
    extra = plan.router_flags.get(choice.router, ())
    spec = routers.spec(choice, plan.commands[choice.router], port, metrics_port, behind, extra)
    return Server(spec, folder / "router.log")


async def _all_known(router: Server, num_nodes: int) -> None:
    """Waits until the router routes to all nodes: it may answer as soon as it knows one of them."""
    root = router.spec.url.removesuffix("/v1")
    with trio.move_on_after(30.0):
        async with open_http(None, 10.0) as http:
            while True:
                listed = (await http.get(f"{root}/workers")).json().get("workers", ())
                if sum(bool(worker.get("is_healthy")) for worker in listed) == num_nodes:
                    return
                await trio.sleep(0.2)
    raise BenchError(f"{router.spec.name} does not use all nodes after 30 s")


async def _play(plan: Plan, settings: Settings, front: Server, nodes: Sequence[Node]) -> tuple[Repetition, list[float]]:
    """The records, and when signals were sent, on the clock of the records."""
    signals: list[float] = []

    async def end(node: Node, at: float, how: End) -> None:
        await trio.sleep(at)
        await node.read()
        signals.append(time.perf_counter())
        node.end(how)

    async with open_http(None, plan.time_limit) as http, trio.open_nursery() as nursery:
        for node, (at, how) in zip(nodes, plan.ends, strict=False):
            nursery.start_soon(node.watch)
            nursery.start_soon(end, node, at, how)
        chat = Client(http, front.target(plan.time_limit)).chat
        repetition = await once(settings, Random(plan.seed), chat)
        nursery.cancel_scope.cancel()
    if len(signals) < len(plan.ends):
        raise BenchError(f"{settings.workload} ended before --kill or --drain: raise --requests")
    return repetition, signals


def _result(
    settings: Settings,
    choice: routers.Choice | None,
    counts: Sequence[Counts],
    repetition: Repetition,
    signals: Sequence[float],
) -> Run:
    records = repetition.records
    return Run(
        policy=str(choice or ALONE),
        workload=settings.workload,
        nodes=tuple(counts),
        measures=times(records),
        outage=outage(records, signals[0]) if signals else None,
        troubles=tuple(dict.fromkeys(record.error for record in records if record.error is not None)),
    )


def shared_prefix(plan: Plan, settings: Settings) -> int:
    """The number of tokens that all conversations of the workload begin with."""
    # Imported here because they load llama.cpp.
    from api.text.template import ChatTemplate
    from api.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(plan.model_path)
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    played, _ = sessions(settings, Random(plan.seed))
    first, *others = [template.render_tokens(list(session.turns[0].messages)) for session in played]
    return min((common_prefix(first, other) for other in others), default=0)
