"""`python -m bench crowded`: a server on a machine that other programs use too."""

import secrets
import sys
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def crowded(
    *,
    users: Annotated[int, typer.Option(min=1, max=256, help="Users at the same time.")] = 8,
    programs: Annotated[int, typer.Option(min=1, max=64, help="Maximum number of busy programs.")] = 2,
    flags: Annotated[
        str, typer.Option(help="Flags for `cortex serve`. With --threads, the number of threads does not change.")
    ] = "",
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 3,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure the throughput of a server beside programs that keep cores busy, compared with it alone."""
    from statistics import median

    from api.models.files import ModelFilesError
    from bench import crowded as crowding
    from bench.servers import scratch_server

    screen = Console(stderr=True, highlight=False)
    salt = secrets.randbits(32)
    try:
        with scratch_server(model, flags) as server:
            measured = trio.run(
                lambda: crowding.measure(
                    server,
                    users=users,
                    programs=programs,
                    repeat=times,
                    seed=salt,
                    print_line=lambda line: screen.print(line, markup=False),
                )
            )
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    outcome = {
        "command": command_line(),
        "salt": salt,
        "median": {name: median(each.measures()[name] or 0.0 for each in measured) for name in measured[0].measures()},
        "repetitions": [each.measures() for each in measured],
    }
    if out is not None:
        out.write_bytes(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome["median"]).decode() + "\n")
