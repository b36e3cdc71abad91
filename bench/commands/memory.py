"""`python -m bench memory`: memory that follows the load of one user, then many, then one."""

import sys
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def memory(
    *,
    users: Annotated[int, typer.Option(min=2, max=1000, help="Number of users in the middle.")] = 32,
    turns: Annotated[int, typer.Option(min=1, max=100, help="Turns of each conversation.")] = 3,
    idle: Annotated[float, typer.Option(min=0.0, help="Seconds without users at the end.")] = 240.0,
    flags: Annotated[str, typer.Option(help="Flags for `cortex serve`.")] = "",
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file with all samples.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file.")] = None,
) -> None:
    """Record memory, the size of the KV cache and the hits while the number of users changes."""
    from api.models.files import ModelFilesError
    from bench import memory as following
    from bench.servers import scratch_server

    screen = Console(stderr=True, highlight=False)
    try:
        with scratch_server(model, flags) as server:
            course = trio.run(
                lambda: following.measure(
                    server,
                    [(1, 2), (users, 2 * users), (1, 2)],
                    turns=turns,
                    idle=idle,
                    rng=Random(seed),
                    print_line=lambda line: screen.print(line, markup=False),
                )
            )
        if plot is not None:
            following.draw(course, plot)
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    last = course.samples[-1] if course.samples else None
    summary = {
        "start_s": course.start_s,
        "errors": course.errors,
        "answer_tokens": course.answer_tokens,
        "longest_gap_s": course.longest_gap_s,
        "most_bytes": max((sample.memory_bytes for sample in course.samples), default=0),
        "last": None if last is None else asdict(last),
    }
    if out is not None:
        document = {"command": command_line(), "seed": seed, **summary, "samples": course.samples}
        out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(summary).decode() + "\n")
