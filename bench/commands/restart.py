"""`python -m bench restart`: the cost of a server restart to a conversation."""

import secrets
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

    from api.models.files import ModelFilesError
    from bench import restart as restarting
    from bench.servers import scratch_server

    screen = Console(stderr=True, highlight=False)
    salt = secrets.randbits(32)
    try:
        with scratch_server(model, flags) as server:
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
