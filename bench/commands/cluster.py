"""`python -m bench cluster`: what routing policies do with several nodes, measured on this machine or simulated."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.cluster import routers, show
from bench.cluster.accounting import Run
from bench.cluster.measure import Plan, measure
from bench.cluster.nodes import End
from bench.cluster.simulated import numbers_of_nodes, simulated
from bench.commands.common import USAGE, command_line, pairs, wide
from bench.records import BenchError
from bench.simulation.routing import ROUTERS
from bench.workloads import Settings, Workload, resolve

WORKLOADS: tuple[Workload, ...] = ("shared", "multiturn", "trace")
SHARED_REQUESTS = 3
"""Requests of each user."""
MEASURED = "smg:round_robin,smg:cache_aware"
SIMULATED = f"{MEASURED},vllm-router:kv_aware"


def cluster(
    *,
    nodes: Annotated[int, typer.Option(min=1, max=8, help="Number of nodes to start.")] = 2,
    simulate: Annotated[
        int,
        typer.Option(min=0, max=32, help="Start nothing: simulate 1, 2, 4 and so on up to this number of nodes."),
    ] = 0,
    policies: Annotated[
        str,
        typer.Option(
            help="ROUTER:POLICY, separated by commas. The routers are smg and vllm-router. The policies that can be "
            f"simulated are {', '.join(ROUTERS)}. Default: {MEASURED}; with --simulate {SIMULATED}.",
            show_default=False,
        ),
    ] = "",
    workloads: Annotated[
        str, typer.Option(help=f"Workloads, separated by commas: {', '.join(WORKLOADS)}.")
    ] = "shared,multiturn",
    users: Annotated[int, typer.Option(min=1, max=256, help="Users for each node.")] = 8,
    requests: Annotated[
        int, typer.Option(min=0, max=100_000, help="Requests of each user. 0: 3 (shared) or 4 (multiturn).")
    ] = 0,
    prompts: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of shared prompts (shared, only with --simulate).")
    ] = 1,
    kill: Annotated[
        float, typer.Option(min=0.0, help="Kill a node this many seconds after the start of the load. 0: never.")
    ] = 0.0,
    drain: Annotated[
        float, typer.Option(min=0.0, help="Send SIGTERM to a node this many seconds after the start. 0: never.")
    ] = 0.0,
    node_flags: Annotated[str, typer.Option(help="Flags for each `cortex serve`.")] = "",
    router_flags: Annotated[
        list[str] | None, typer.Option(help="ROUTER=FLAGS: flags to add to the router's own. May be repeated.")
    ] = None,
    router_folder: Annotated[
        Path | None,
        typer.Option(help="The folder of the routers' commands. Default: beside python, on PATH, in .peers/venv/bin."),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="CSV file: TIMESTAMP,ContextTokens,GeneratedTokens.")] = None,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Speed of the trace: how many of its seconds are played in one second.")
    ] = 1.0,
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Threads of each node. 0: an equal share of the physical cores.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Number that chooses the texts.")] = 0,
    time_limit: Annotated[float, typer.Option(min=1.0, max=86_400.0, help="Seconds for one request or run.")] = 600.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Compare routing policies: nodes and a router on this machine, the same texts for each policy."""
    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from scheduler.machine import cores

    screen = Console(stderr=True, highlight=False)
    try:
        _require_fitting(simulate, prompts, kill, drain)
        ends = _ends(kill, drain, nodes)
        chosen = routers.choices(policies or (SIMULATED if simulate else MEASURED))
        extra = routers.extra_flags(pairs("--router-flags", router_flags))
        loads = {
            number: settings_of(workloads, users * number, requests, trace, speed)
            for number in (numbers_of_nodes(simulate) if simulate else [nodes])
        }
        if simulate:
            runs = _simulated(loads, chosen, extra, str(seed), prompts)
        else:
            plan = Plan(
                model_path=resolve_model(model),
                nodes=nodes,
                flags=tuple(shlex.split(node_flags)),
                threads=threads or max(1, cores() // nodes),
                choices=chosen,
                commands={each.router: routers.find(each.router, router_folder) for each in chosen},
                router_flags=extra,
                workloads=loads[nodes],
                seed=str(seed),
                ends=ends,
                time_limit=time_limit,
            )
            runs = trio.run(measure, plan, lambda line: screen.print(line, markup=False))
        documents = [show.document(run) for run in runs]
        if out is not None:
            kept = {"command": command_line(), "runs": documents}
            out.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))
    except (BenchError, ModelFilesError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    show.show(runs, wide())
    sys.stdout.write(orjson.dumps(documents).decode() + "\n")


def _simulated(
    loads: Mapping[int, Sequence[Settings]],
    choices: Sequence[routers.Choice],
    flags: Mapping[str, Sequence[str]],
    seed: str,
    prompts: int,
) -> list[Run]:
    """Runs for each workload, number of nodes and policy. One node has no router, so it is simulated once."""
    workloads = range(len(loads[1]))
    return [
        simulated(
            loads[number][index],
            choice if number > 1 else None,
            number,
            routers.thresholds(choice, flags.get(choice.router, ())),
            seed,
            prompts,
        )
        for index, number, choice in product(workloads, loads, choices)
        if number > 1 or choice == choices[0]
    ]


def settings_of(workloads: str, users: int, requests: int, trace: Path | None, speed: float) -> tuple[Settings, ...]:
    """The settings of each workload. `users` are those of all nodes, `requests` those of a user.

    Raises BenchError if there is no such workload, or if it needs something that is not given.
    """
    chosen = []
    for name in filter(None, workloads.split(",")):
        match name:
            case "shared":
                settings = Settings(workload=name, users=users, requests=users * (requests or SHARED_REQUESTS))
            case "multiturn":
                settings = Settings(workload=name, users=users, turns=requests)
            case "trace":
                settings = Settings(workload=name, trace=trace, speed=speed)
            case _:
                raise BenchError(f"--workloads {name}: must be one of {', '.join(WORKLOADS)}")
        chosen.append(resolve(settings))
    if not chosen:
        raise BenchError("--workloads names no workload")
    return tuple(chosen)


def _require_fitting(simulate: int, prompts: int, kill: float, drain: float) -> None:
    if simulate and (kill or drain):
        raise BenchError("--kill and --drain do not apply to --simulate")
    if prompts > 1 and not simulate:
        raise BenchError("--prompts needs --simulate")


def _ends(kill: float, drain: float, nodes: int) -> tuple[tuple[float, End], ...]:
    """Raises BenchError if no node would be left."""
    given: tuple[tuple[float, End], ...] = ((kill, "kill"), (drain, "drain"))
    ends = tuple((at, how) for at, how in given if at)
    if len(ends) >= nodes:
        raise BenchError("--kill and --drain must leave a node: raise --nodes")
    return ends
