"""`python -m bench ceiling`: the throughput of the model alone."""

import secrets
import sys
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer
from rich.console import Console

from bench.client import require_loopback
from bench.commands.common import USAGE, command_line
from bench.records import BenchError
from bench.workloads import Settings, resolve

# The workloads that the bare loop can play.
Bare = Literal["single", "uniform", "shared", "burst", "multiturn", "agents"]


def ceiling(
    *,
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    url: Annotated[
        str, typer.Option(help="URL of a server of the same model, to measure in turn with the bare loop.")
    ] = "",
    workload: Annotated[Bare, typer.Option()] = "uniform",
    users: Annotated[int, typer.Option(min=0, max=256, help="0: the workload's default.")] = 0,
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 5,
    fill: Annotated[bool, typer.Option(help="Fill the KV pools with idle sequences first.")] = True,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Measure the throughput of the model alone on this machine; with --url, also that of a server."""
    # Imported here because it loads llama.cpp, which `load` does not need.
    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from bench import ceiling as bare

    try:
        if url:
            require_loopback(url)
        settings = resolve(Settings(workload=workload, users=users))
        plan = bare.Plan(
            model_path=resolve_model(model),
            settings=settings,
            url=url.rstrip("/"),
            repeat=times,
            fill=fill,
            salt=secrets.randbits(32),
        )
        outcome = bare.run(plan, Console(stderr=True))
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    bare.show(outcome, Console())
    if out is not None:
        command = command_line()
        out.write_bytes(orjson.dumps({"command": command, **outcome}, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome).decode() + "\n")
