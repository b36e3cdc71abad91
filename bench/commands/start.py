"""`python -m bench start`: the time from the start of a server to its first answer."""

import sys
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def start(
    *,
    flags: Annotated[str, typer.Option(help="Flags for `cortex serve`.")] = "",
    beside: Annotated[bool, typer.Option(help="Start llama-server with its defaults, too.")] = False,
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 10,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure the seconds from the start of a server to its first answer, and its memory then."""
    from statistics import median
    from tempfile import TemporaryDirectory

    from api.models.files import ModelFilesError
    from bench import start as starting
    from bench.peers import plain_llama_server
    from bench.servers import Server, free_ports, scratch_server

    screen = Console(stderr=True, highlight=False)
    try:
        with scratch_server(model, flags) as server, TemporaryDirectory(prefix="cortex-bench-") as logs:
            servers = [server]
            if beside:
                servers.append(Server(plain_llama_server(model, free_ports(1)[0]), Path(logs) / "log"))
            measured = trio.run(
                lambda: starting.measure(
                    servers, repeat=times, print_line=lambda line: screen.print(line, markup=False)
                )
            )
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    medians = {
        name: {
            measure: median(start.measures()[measure] or 0.0 for start in starts) for measure in starts[0].measures()
        }
        for name, starts in measured.items()
    }
    if out is not None:
        document = {"command": command_line(), "median": medians, "starts": measured}
        out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(medians).decode() + "\n")
