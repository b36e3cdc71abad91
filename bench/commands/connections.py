"""`python -m bench connections`: clients that stall, and more of them at once than the server takes."""

import sys
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def connections(
    *,
    stalled: Annotated[int, typer.Option(min=1, max=20_000, help="Connections that send half a request.")] = 900,
    at_once: Annotated[int, typer.Option(min=1, max=20_000, help="Connections at once, each with a request.")] = 2000,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds until the server gives up a request.")] = 60.0,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for the end of a connection.")] = 120.0,
    flags: Annotated[str, typer.Option(help="Flags for `cortex serve`.")] = "--max-waiting 8",
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure what a server does with connections that stall, and with more at once than it takes."""
    from api.models.files import ModelFilesError
    from bench import connections as connecting
    from bench.servers import scratch_server

    screen = Console(stderr=True, highlight=False)
    try:
        with scratch_server(model, flags) as server:
            measured = trio.run(
                lambda: connecting.measure(
                    server,
                    num_stalled=stalled,
                    num_crowd=at_once,
                    deadline=deadline,
                    patience=patience,
                    print_line=lambda line: screen.print(line, markup=False),
                )
            )
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if out is not None:
        out.write_bytes(orjson.dumps({"command": command_line(), **measured}, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(measured).decode() + "\n")
