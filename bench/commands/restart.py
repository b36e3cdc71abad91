"""`python -m bench restart`: the cost of a server restart to a conversation."""

import secrets
import shlex
import sys
from pathlib import Path
from random import Random
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def restart(
    *,
    prompt_tokens: Annotated[
        int, typer.Option(min=256, max=100_000, help="Approximate length of the first prompt.")
    ] = 2000,
    flags: Annotated[str, typer.Option(help="Flags for `cortex serve`.")] = "",
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 5,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure the TTFT of a conversation's next turn after a server restart, and of its cold first turn."""
    from statistics import median
    from tempfile import TemporaryDirectory

    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from bench import restart as restarting
    from bench.peers import Common, cortex
    from bench.servers import Server, free_ports
    from scheduler.machine import cores

    screen = Console(stderr=True, highlight=False)
    salt = secrets.randbits(32)
    try:
        with TemporaryDirectory(prefix="cortex-bench-") as scratch:
            common = Common(
                model_path=resolve_model(model),
                threads=cores(),
                context=0,
                scratch=Path(scratch),
                extra={},
                end_tokens=list,
            )
            (port,) = free_ports(1)
            server = Server(cortex(common, port, flags=shlex.split(flags)), Path(scratch) / "log")
            measured = trio.run(
                lambda: restarting.measure(
                    server,
                    prompt_tokens,
                    repeat=times,
                    rng=Random(salt),
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
        "restarts": measured,
    }
    if out is not None:
        out.write_bytes(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome["median"]).decode() + "\n")
