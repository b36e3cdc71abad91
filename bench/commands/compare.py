"""`python -m bench compare` and `page`: compare servers, and write the report again."""

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
from bench.commands.common import INTERRUPTED, USAGE, command_line, pairs, wide
from bench.peers import NAMES
from bench.records import BenchError
from bench.workloads import Settings


def compare(
    *,
    out: Annotated[Path, typer.Option(help="A folder for comparison.json, report.html, plots and logs.")],
    servers: Annotated[
        str,
        typer.Option(
            help="Servers, separated by commas. The first is compared with each of the others. llama-server-drafts has "
            "the best --spec-type for each workload. Default: all others."
        ),
    ] = ",".join(NAMES),
    workloads: Annotated[
        str, typer.Option(help="Workloads, separated by commas. A number of users may follow a name, as in uniform:32.")
    ] = ("single,uniform:8,uniform:32,burst,shared,interference,multiturn,agents"),
    url: Annotated[
        list[str] | None, typer.Option(help="NAME=URL of a server that already runs. May be repeated.")
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Option(
            help="SERVER=FLAGS: flags to add to the server's own. For llama-server-tuned and llama-server-drafts, they "
            "replace the search for the best flags."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FLAGS: measure Cortex with these flags too, under this name. May be repeated."),
    ] = None,
    model: Annotated[str, typer.Option(help="A model as for `cortex run`.")] = "smollm2:135m",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="Number of threads. 0: the number of physical cores.")
    ] = 0,
    allow_remote: Annotated[bool, typer.Option(help="Allow a URL that is not loopback.")] = False,
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    salt: Annotated[
        int | None,
        typer.Option(help="Number that changes the texts of a run. Default: random, and recorded in the result."),
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="CSV file: TIMESTAMP,ContextTokens,GeneratedTokens.")] = None,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Speed of the trace: how many of its seconds are played in one second.")
    ] = 1.0,
    max_context: Annotated[
        int, typer.Option(min=64, help="Maximum tokens of prompt and output together (trace).")
    ] = 1024,
    max_output: Annotated[int, typer.Option(min=1, help="Maximum output tokens of a request (trace).")] = 64,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of rows to play (trace).")] = 64,
    block_limit: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, help="Seconds for one server, workload and repetition.")
    ] = 300.0,
    time_limit: Annotated[float, typer.Option(min=1.0, max=864_000.0, help="Seconds for the comparison.")] = 4 * 3600.0,
) -> None:
    """Measure servers of the same model in turn, under the same load. `make peers` builds the other servers."""
    from api.models.files import ModelFilesError
    from api.models.files import resolve as resolve_model
    from bench import compare as comparison
    from bench import page, plans
    from bench.blocks import Limits
    from scheduler.machine import cores

    screen = Console(stderr=True, highlight=False)
    started = datetime.now(UTC)
    try:
        others = pairs("--url", url)
        for address in others.values() if not allow_remote else ():
            require_loopback(address)
        variants = {name: tuple(shlex.split(value)) for name, value in pairs("--variant", variant).items()}
        base = Settings(
            workload="trace", trace=trace, speed=speed, max_context=max_context, max_output=max_output, limit=limit
        )
        plan = plans.Plan(
            model_path=resolve_model(model),
            servers=comparison.contestants(
                (*filter(None, servers.split(",")), *variants, *others), {*variants, *others}
            ),
            others={name: address.rstrip("/") for name, address in others.items()},
            entries=tuple(comparison.entries(workloads, base)),
            extra={name: tuple(shlex.split(value)) for name, value in pairs("--flags", flags).items()},
            variants=variants,
            threads=threads or cores(),
            repeat=times,
            seed=seed,
            salt=secrets.randbits(32) if salt is None else salt,
            limits=Limits(block=block_limit, total=time_limit),
            out=out,
        )
        out.mkdir(parents=True, exist_ok=True)
        done = trio.run(comparison.compare, plan, lambda line: screen.print(line, markup=False))
        command = command_line()
        kept = plans.document(plan, done, command, started.isoformat())
        (out / "comparison.json").write_bytes(orjson.dumps(kept, default=str, option=orjson.OPT_INDENT_2))
        page.show(kept, wide())
        for path in page.write(kept, out):
            screen.print(f"wrote {path}", markup=False)
    except (BenchError, ModelFilesError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


def page_command(
    comparison: Annotated[Path, typer.Argument(help="A comparison.json that `compare` wrote.")],
    out: Annotated[Path | None, typer.Option(help="A folder. Default: that of the comparison.")] = None,
) -> None:
    """Write the report of a comparison again from its comparison.json."""
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
