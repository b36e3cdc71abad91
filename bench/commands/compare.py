"""`python -m bench compare` and `page`: servers side by side, and the report of it."""

import secrets
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console

from bench.client import require_loopback
from bench.commands.common import INTERRUPTED, USAGE, command_line, wide
from bench.peers import NAMES
from bench.records import BenchError
from bench.workloads import Settings


def compare(
    *,
    out: Annotated[Path, typer.Option(help="A folder for comparison.json, report.html, plots and logs.")],
    servers: Annotated[
        str, typer.Option(help="The first is the one that the others are held against. Default: all that there are.")
    ] = ",".join(NAMES),
    workloads: Annotated[str, typer.Option(help="With users: uniform:32.")] = (
        "single,uniform:8,uniform:32,burst,shared,interference,multiturn,agents"
    ),
    url: Annotated[list[str] | None, typer.Option(help="NAME=URL of one that runs already. May be repeated.")] = None,
    flags: Annotated[
        list[str] | None,
        typer.Option(help="SERVER=FLAGS to start it with, beside its own. For llama-server-tuned, in place of tuning."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="NAME=FLAGS of another Cortex, beside its defaults. May be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help="As for `cortex run`.")] = "smollm2:135m",
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0: physical cores.")] = 0,
    allow_remote: Annotated[bool, typer.Option(help="Permit an address that is not loopback.")] = False,
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    salt: Annotated[int | None, typer.Option(help="Makes the texts new. Default: random; recorded.")] = None,
    trace: Annotated[Path | None, typer.Option(help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Trace seconds per second.")] = 1.0,
    max_context: Annotated[int, typer.Option(min=64, help="Prompt and output together (trace).")] = 1024,
    max_output: Annotated[int, typer.Option(min=1, help="Of a request (trace).")] = 64,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of the trace.")] = 64,
    block_limit: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, help="Seconds for one server under one workload once.")
    ] = 300.0,
    time_limit: Annotated[float, typer.Option(min=1.0, max=864_000.0, help="Seconds for all.")] = 4 * 3600.0,
) -> None:
    """Start servers of the same model and put them under the same load in turn; `make peers` builds the others."""
    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from bench import compare as comparison
    from bench import page
    from scheduler.machine import cores

    screen = Console(stderr=True, highlight=False)
    started = datetime.now(UTC)
    try:
        others = _pairs("--url", url)
        for address in others.values() if not allow_remote else ():
            require_loopback(address)
        variants = {name: tuple(shlex.split(value)) for name, value in _pairs("--variant", variant).items()}
        base = Settings(
            workload="trace", trace=trace, speed=speed, max_context=max_context, max_output=max_output, limit=limit
        )
        plan = comparison.Plan(
            model_path=resolve_model(model),
            servers=comparison.contestants(
                (*filter(None, servers.split(",")), *variants, *others), {*variants, *others}
            ),
            others={name: address.rstrip("/") for name, address in others.items()},
            entries=tuple(comparison.entries(workloads, base)),
            extra={name: tuple(shlex.split(value)) for name, value in _pairs("--flags", flags).items()},
            variants=variants,
            threads=threads or cores(),
            repeat=times,
            seed=seed,
            salt=secrets.randbits(32) if salt is None else salt,
            limits=comparison.Limits(block=block_limit, total=time_limit),
            out=out,
        )
        out.mkdir(parents=True, exist_ok=True)
        done = trio.run(comparison.compare, plan, lambda line: screen.print(line, markup=False))
        command = command_line()
        kept = comparison.document(plan, done, command, started.isoformat())
        (out / "comparison.json").write_bytes(orjson.dumps(kept, default=str, option=orjson.OPT_INDENT_2))
        page.show(kept, wide())
        for path in page.write(kept, out):
            screen.print(f"wrote {path}", markup=False)
    except (BenchError, ModelFilesError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


def page_again(
    comparison: Annotated[Path, typer.Argument(help="The comparison.json of a comparison.")],
    out: Annotated[Path | None, typer.Option(help="A folder. Default: where the comparison lies.")] = None,
) -> None:
    """Make the report of a comparison again from its file."""
    from bench import page

    try:
        kept = orjson.loads(comparison.read_bytes())
        page.show(kept, wide())
        folder = out or comparison.parent
        folder.mkdir(parents=True, exist_ok=True)
        for path in page.write(kept, folder):
            typer.echo(f"wrote {path}", err=True)
    except (BenchError, OSError, ValueError, LookupError, TypeError) as error:
        typer.echo(f"error: {comparison}: {error}", err=True)
        raise typer.Exit(USAGE) from None


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise BenchError(f"{option} {name}{equals}{value}: give NAME=VALUE")
    return {name: value for name, _, value in pairs}
