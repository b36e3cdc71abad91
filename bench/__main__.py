"""`python -m bench`: the command line of everything that measures."""

import secrets
import shlex
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import orjson
import trio
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report
from bench.client import Client, Target, first_model, open_http, require_loopback
from bench.load import Repetition, repeat
from bench.peers import NAMES
from bench.records import BenchError
from bench.workloads import Settings, Workload, resolve

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

INTERFERENCE_REPEAT = 5
Bare = Literal["single", "uniform", "shared", "burst", "multiturn", "agents"]  # what `ceiling` can play

# Exit codes: every request failed; nothing could be measured; stopped by a signal.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


@app.command()
def load(
    *,
    url: Annotated[str, typer.Option(help="The server's OpenAI base address.")] = "http://127.0.0.1:39281/v1",
    workload: Annotated[Workload, typer.Option()] = "uniform",
    model: Annotated[str, typer.Option(help="Default: the first that the server names.")] = "",
    api_key: Annotated[str, typer.Option(envvar="BENCH_API_KEY")] = "",
    allow_remote: Annotated[bool, typer.Option(help="Permit an address that is not loopback.")] = False,
    users: Annotated[int, typer.Option(min=0, max=10_000, help="At a time. 0: the workload's own.")] = 0,
    requests: Annotated[int, typer.Option(min=0, max=100_000, help="In total. 0: the workload's own.")] = 0,
    prompt_tokens: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="About, template included. 0: the workload's own.")
    ] = 0,
    output_tokens: Annotated[int, typer.Option(min=0, max=100_000, help="0: the workload's own.")] = 0,
    turns: Annotated[
        int, typer.Option(min=0, max=100, help="Of a conversation (multiturn, agents). 0: the workload's own.")
    ] = 0,
    trace: Annotated[Path | None, typer.Option(help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Trace seconds per second.")] = 1.0,
    max_context: Annotated[int, typer.Option(min=64, help="Prompt and output together (trace).")] = 1024,
    max_output: Annotated[int, typer.Option(min=1, help="Of a request (trace).")] = 64,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of the trace.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Send ignore_eos, so that lengths are equal.")] = True,
    times: Annotated[int, typer.Option("--repeat", min=0, max=1000, help="0: 1, interference 5.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    salt: Annotated[
        int | None, typer.Option(help="Makes the texts new to a server's caches. Default: random; recorded.")
    ] = None,
    settle: Annotated[float, typer.Option(min=0.0, max=600.0, help="Quiet seconds between phases.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds for one request.")] = 600.0,
    time_limit: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds for all.")] = 3600.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file with every record.")] = None,
    label: Annotated[str, typer.Option(help="Default: the workload's name.")] = "",
) -> None:
    """Load an OpenAI-compatible server; prints a table and, as the last line, the summary as JSON."""
    url = url.rstrip("/")
    salt = secrets.randbits(32) if salt is None else salt
    try:
        if not allow_remote:
            require_loopback(url)
        settings = resolve(
            Settings(
                workload=workload,
                users=users,
                requests=requests,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                turns=turns,
                settle_s=settle,
                trace=trace,
                speed=speed,
                max_context=max_context,
                max_output=max_output,
                limit=limit,
            )
        )
        if out is not None:  # found out before the run, not after it
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
        target = Target(
            url=url,
            model=model,
            api_key=api_key or None,
            temperature=temperature,
            top_p=top_p,
            ignore_eos=ignore_eos,
            timeout=timeout,
            time_limit=time_limit,
        )
        times = times or (INTERFERENCE_REPEAT if workload == "interference" else 1)
        started = datetime.now(UTC)
        target, repetitions = trio.run(_measure, target, settings, times, seed, salt)
    except (BenchError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None

    head = {"label": label or workload, "workload": workload, "url": url, "model": target.model}
    outcome = report.result({**head, "seed": seed, "salt": salt, "started": started.isoformat()}, repetitions)
    if out is not None:
        how = {
            "command": shlex.join(["python", "-m", "bench", *_without(api_key, sys.argv[1:])]),
            "settings": asdict(settings),
            "target": asdict(replace(target, api_key=None)),
        }
        out.write_bytes(report.document(outcome, how, repetitions))
    report.show(outcome, repetitions, Console())
    sys.stdout.write(orjson.dumps(outcome).decode() + "\n")
    if outcome["errors"] == outcome["requests"]:
        raise typer.Exit(FAILED)


async def _measure(
    target: Target, settings: Settings, times: int, seed: int, salt: int
) -> tuple[Target, list[Repetition]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed} requests done"),
        TimeElapsedColumn(),
    )
    screen = Console(stderr=True)
    async with open_http(target.api_key, target.timeout) as http:
        if not target.model:
            target = replace(target, model=await first_model(http, target.url))
        hidden = not screen.is_terminal
        with Progress(*columns, console=screen, refresh_per_second=2, disable=hidden) as progress:
            task = progress.add_task(settings.workload, total=None)
            client = Client(http, target, on_record=lambda: progress.advance(task))
            repetitions = await repeat(
                settings, client.chat, times=times, seed=seed, salt=salt, time_limit=target.time_limit
            )
    return target, repetitions


def _without(secret: str, arguments: list[str]) -> list[str]:
    return [argument.replace(secret, "***") for argument in arguments] if secret else arguments


@app.command()
def ceiling(
    *,
    model: Annotated[str, typer.Option(help="As for `cortex run`.")] = "smollm2:135m",
    url: Annotated[str, typer.Option(help="A server of the same model, measured in turn with the bare loop.")] = "",
    workload: Annotated[Bare, typer.Option()] = "uniform",
    users: Annotated[int, typer.Option(min=0, max=256, help="0: the workload's own.")] = 0,
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 5,
    fill: Annotated[bool, typer.Option(help="Fill the KV pools with idle sequences first.")] = True,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """What the model alone reaches on this machine; with --url, how close a server comes to it."""
    # Only now: it loads llama.cpp, which a load generator does without.
    from api.model_files import ModelFilesError
    from api.model_files import resolve as resolve_model
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
        command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
        out.write_bytes(orjson.dumps({"command": command, **outcome}, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome).decode() + "\n")


@app.command()
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
    from api.model_files import ModelFilesError
    from api.model_files import resolve as resolve_model
    from bench import compare as comparison
    from bench import page
    from scheduler.sizing import cores

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
        command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
        kept = comparison.document(plan, done, command, started.isoformat())
        (out / "comparison.json").write_bytes(orjson.dumps(kept, default=str, option=orjson.OPT_INDENT_2))
        page.show(kept, _wide())
        for path in page.write(kept, out):
            screen.print(f"wrote {path}", markup=False)
    except (BenchError, ModelFilesError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def restart(
    *,
    prompt_tokens: Annotated[int, typer.Option(min=256, max=100_000, help="Of the conversation, about.")] = 2000,
    flags: Annotated[str, typer.Option(help="For `cortex serve`.")] = "",
    model: Annotated[str, typer.Option(help="As for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 5,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """The first token of a conversation's next turn after the server was started again, beside that of a cold one."""
    from statistics import median
    from tempfile import TemporaryDirectory

    from api.model_files import ModelFilesError
    from api.model_files import resolve as resolve_model
    from bench import restart as restarting
    from bench.peers import Common, cortex
    from bench.servers import Server, free_ports
    from scheduler.sizing import cores

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
                    say=lambda line: screen.print(line, markup=False),
                )
            )
    except (BenchError, ModelFilesError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    outcome = {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "salt": salt,
        "median": {name: median(each.measures()[name] or 0.0 for each in measured) for name in measured[0].measures()},
        "restarts": measured,
    }
    if out is not None:
        out.write_bytes(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome["median"]).decode() + "\n")


@app.command()
def fanout(
    *,
    streams: Annotated[int, typer.Option(min=1, max=256, help="At a time.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, max=3000, help="Of each.")] = 256,
    rate: Annotated[float, typer.Option(min=0.1, max=1000.0, help="Steps that the engine makes in a second.")] = 60.0,
    model: Annotated[str, typer.Option(help="Whose tokenizer to use; as for `cortex run`.")] = "smollm2:135m",
    times: Annotated[int, typer.Option("--repeat", min=1, max=1000)] = 3,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
) -> None:
    """How many tokens the API process carries on one core, from an engine whose model is a clock."""
    from statistics import median
    from tempfile import TemporaryDirectory

    from api.model_files import ModelFilesError
    from api.model_files import resolve as resolve_model
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
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "offered_tokens_per_s": streams * rate,
        "median": {name: median(each.measures()[name] or 0.0 for each in measured) for name in measured[0].measures()},
        "repetitions": [each.measures() for each in measured],
    }
    if out is not None:
        out.write_bytes(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(outcome["median"]).decode() + "\n")


@app.command("page")
def page_again(
    comparison: Annotated[Path, typer.Argument(help="The comparison.json of a comparison.")],
    out: Annotated[Path | None, typer.Option(help="A folder. Default: where the comparison lies.")] = None,
) -> None:
    """Make the report of a comparison again from its file."""
    from bench import page

    try:
        kept = orjson.loads(comparison.read_bytes())
        page.show(kept, _wide())
        folder = out or comparison.parent
        folder.mkdir(parents=True, exist_ok=True)
        for path in page.write(kept, folder):
            typer.echo(f"wrote {path}", err=True)
    except (BenchError, OSError, ValueError, LookupError, TypeError) as error:
        typer.echo(f"error: {comparison}: {error}", err=True)
        raise typer.Exit(USAGE) from None


def _wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise BenchError(f"{option} {name}{equals}{value}: give NAME=VALUE")
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    app()
