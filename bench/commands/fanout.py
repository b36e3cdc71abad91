"""`python -m bench fanout`: the throughput of the API process alone."""

import sys
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer

from bench.commands.common import USAGE, command_line
from bench.records import BenchError


def fanout(
    *,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Streams at the same time.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, max=3000, help="Output tokens of each stream.")] = 256,
    rate: Annotated[float, typer.Option(min=0.1, max=1000.0, help="Engine steps per second.")] = 60.0,
    model: Annotated[str, typer.Option(help="The model whose tokenizer to use, as for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 3,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """Measure the tokens per second of the API process on one core. A fake engine sends tokens at a fixed rate."""
    from statistics import median
    from tempfile import TemporaryDirectory

    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from bench import fanout as fanning
    from bench.servers import Server, Spec, free_ports

    try:
        with TemporaryDirectory(prefix="cortex-bench-") as scratch:
            (port,) = free_ports(1)
            spec = Spec(
                name="api",
                url=f"http://127.0.0.1:{port}/v1",
                command=fanning.command(resolve_model(model), port, 1 / rate),
                environment={"CORTEX_HOME": scratch},
            )
            server = Server(spec, Path(scratch) / "log")
            measured = trio.run(
                lambda: fanning.repeat(server, port, streams=streams, output_tokens=output_tokens, times=times)
            )
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    outcome = {
        "command": command_line(),
        "offered_tokens_per_s": streams * rate,
        "median": {name: median(each.measures()[name] or 0.0 for each in measured) for name in measured[0].measures()},
        "repetitions": [each.measures() for each in measured],
    }
    if out is not None:
        out.write_bytes(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome["median"]).decode() + "\n")
