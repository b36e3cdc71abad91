"""`python -m bench load`: measure one server under one workload."""

import secrets
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import trio
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report
from bench.client import Client, Identify, Target, first_model, open_http, require_loopback
from bench.commands.common import FAILED, USAGE
from bench.load import Repetition, repeat
from bench.records import BenchError
from bench.workloads import Settings, Variant, Workload, resolve, tenants_of

INTERFERENCE_REPEAT = 5


def load(
    *,
    url: Annotated[str, typer.Option(help="The server's OpenAI base URL.")] = "http://127.0.0.1:39281/v1",
    workload: Annotated[Workload, typer.Option()] = "uniform",
    model: Annotated[str, typer.Option(help="Name of the model. Default: the first model that the server lists.")] = "",
    api_key: Annotated[str, typer.Option(envvar="BENCH_API_KEY")] = "",
    allow_remote: Annotated[bool, typer.Option(help="Allow a URL that is not loopback.")] = False,
    users: Annotated[
        int, typer.Option(min=0, max=10_000, help="Number of users at the same time. 0: the workload's default.")
    ] = 0,
    requests: Annotated[
        int, typer.Option(min=0, max=100_000, help="Number of requests in total. 0: the workload's default.")
    ] = 0,
    prompt_tokens: Annotated[
        int,
        typer.Option(
            min=0, max=1_000_000, help="Approximate tokens of a prompt with its template. 0: the workload's default."
        ),
    ] = 0,
    output_tokens: Annotated[
        int, typer.Option(min=0, max=100_000, help="Tokens of an answer. 0: the workload's default.")
    ] = 0,
    turns: Annotated[
        int,
        typer.Option(
            min=0, max=100, help="Turns of a conversation (multiturn, agents, edit, rag). 0: the workload's default."
        ),
    ] = 0,
    trace: Annotated[Path | None, typer.Option(help="CSV file: TIMESTAMP,ContextTokens,GeneratedTokens.")] = None,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Speed of the trace: how many of its seconds are played in one second.")
    ] = 1.0,
    max_context: Annotated[
        int, typer.Option(min=64, help="Maximum tokens of prompt and output together (trace).")
    ] = 1024,
    max_output: Annotated[int, typer.Option(min=1, help="Maximum output tokens of a request (trace).")] = 64,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of rows to play (trace).")] = 64,
    variant: Annotated[
        Variant,
        typer.Option(
            help="The load beside the stranger (fairness): many chats; one completion of 1,024 prompts; "
            "chats in the class batch, beside a stranger in the class interactive."
        ),
    ] = "flood",
    seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds of load (weights, tenants). 0: 60 seconds.")
    ] = 0.0,
    identify: Annotated[
        Identify,
        typer.Option(help="How requests name their tenant (fairness, weights, tenants): the field `user`, or keys."),
    ] = "user",
    tenant_keys: Annotated[
        str,
        typer.Option(
            "--tenant-keys",
            envvar="BENCH_TENANT_KEYS",
            help="API keys for --identify keys: TENANT=KEY, separated by commas. The tenants are A and B (fairness), "
            "heavy and light (weights), tenant1 to tenant8 (tenants).",
        ),
    ] = "",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Send ignore_eos, so that all answers have full length.")] = True,
    times: Annotated[
        int,
        typer.Option(
            "--repeat", min=0, max=1000, help="Number of repetitions. 0: 5 for interference, 1 for other workloads."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    salt: Annotated[
        int | None,
        typer.Option(help="Number that makes the texts new to all caches. Default: random, and recorded."),
    ] = None,
    settle: Annotated[float, typer.Option(min=0.0, max=600.0, help="Seconds without load between phases.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds for one request.")] = 600.0,
    time_limit: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds for the whole run.")] = 3600.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file with every record.")] = None,
    label: Annotated[str, typer.Option(help="Name of the result. Default: the workload's name.")] = "",
) -> None:
    """Put load on an OpenAI-compatible server. Prints a table and, on the last line, the summary as JSON."""
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
                seconds=seconds,
                variant=variant,
            )
        )
        keys = _keys(tenant_keys, tenants_of(settings)) if identify == "keys" else {}
        if out is not None:  # fail before the run, not after it
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
        target = Target(
            url=url,
            model=model,
            api_key=api_key or None,
            temperature=temperature,
            top_p=top_p,
            ignore_eos=ignore_eos,
            identify=identify,
            keys=keys,
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
            "command": shlex.join(["python", "-m", "bench", *_redacted([api_key, *keys.values()], sys.argv[1:])]),
            "settings": asdict(settings),
            "target": asdict(replace(target, api_key=None, keys={})),
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


def _keys(given: str, tenants: Sequence[str]) -> dict[str, str]:
    """Raises BenchError if a tenant of the workload has no key."""
    pairs = (each.partition("=") for each in given.split(",") if each.strip())
    keys = {name.strip(): key.strip() for name, _, key in pairs}
    missing = [name for name in tenants if not keys.get(name)]
    if missing:
        raise BenchError(f"--identify keys needs --tenant-keys with a key for {', '.join(missing)}")
    return keys


def _redacted(secrets: Iterable[str], arguments: list[str]) -> list[str]:
    for secret in filter(None, secrets):
        arguments = [argument.replace(secret, "***") for argument in arguments]
    return arguments
