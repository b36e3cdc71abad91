"""The `cortex` command."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from api import package_version
from api.launch import CommandError, end, ensure_served, require_free_port
from api.model_files import ModelFilesError, resolve
from api.options import ServerFlags, with_server_flags
from api.record import AlreadyRunningError, ServerRecord, ask_health, read_record
from api.terminal import chat, print_servers, print_tuning, spinner
from api.tune import measure

LOG_LINES = 15
STOP_MARGIN_SECONDS = 10.0
"""What a server may take to end after its grace period."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Path of a .gguf file, or a name such as smollm2:135m.")]


def main() -> None:
    """Run the command line. An expected failure is one line on stderr and an exit code, 2 for wrong usage."""
    try:
        code = app(prog_name="cortex", standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except CommandError as error:
        lines = _last_lines(error.log)
        _fail(f"{error}; the end of {error.log}:" if lines else str(error), 1, lines)
    except (ModelFilesError, AlreadyRunningError) as error:
        _fail(str(error), 1)
    except OSError as error:
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason, 1)
    sys.exit(code)


def _fail(message: str, code: int, log_lines: Sequence[str] = ()) -> NoReturn:
    typer.echo(f"cortex: {' '.join(message.split())}", err=True)
    for line in log_lines:
        typer.echo(f"  {line}", err=True)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def cortex(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Serve a language model to a whole team, over OpenAI's API."""
    if version:
        typer.echo(f"cortex {package_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
@with_server_flags()
def run(
    model: Model,
    flags: ServerFlags,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return when the model answers, instead of opening a chat.")
    ] = False,
) -> None:
    """Start a server for MODEL unless it runs already, and chat with it in the terminal."""
    record, started = ensure_served(model, flags)
    if detach:
        typer.echo(f"{model} {'answers' if started else 'runs already'} at {record.base_url}")
        return
    complete = chat(record.connect_url, record.model)
    typer.echo(f"{record.model} still runs at {record.base_url}; 'cortex stop' ends it.", err=True)
    if not complete and not sys.stdin.isatty():
        raise typer.Exit(1)


@app.command()
@with_server_flags()
def serve(
    model: Model,
    flags: ServerFlags,
    log_file: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve MODEL in the foreground, for containers and service managers."""
    record = read_record()
    if record is not None:
        raise AlreadyRunningError(record)
    path = resolve(model)
    require_free_port(flags.host, flags.port)
    from api.server import serve as serve_until_stopped

    raise typer.Exit(serve_until_stopped(flags.options(model, path, log_file)))


@app.command()
@with_server_flags("gpu_layers", "kv_type", "flash_attn")
def tune(
    model: Model,
    flags: ServerFlags,
    seconds: Annotated[
        float, typer.Option(min=1.0, max=3600.0, help="How long it may take, about; less tries fewer settings.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure with how many threads and how large steps MODEL is fastest here; servers of it then start with these."""
    record = read_record()
    if record is not None:  # the two would disturb each other
        raise AlreadyRunningError(record)
    outcome = measure(model, flags.options(model, resolve(model)).engine, seconds)
    if as_json:
        typer.echo(json.dumps(outcome, indent=2))
    else:
        print_tuning(model, outcome)


@app.command()
def ps(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """Show what runs."""
    record = read_record()
    servers = [] if record is None else [_describe(record)]
    if as_json:
        typer.echo(json.dumps(servers, indent=2))
    elif servers:
        print_servers(servers)
    else:
        typer.echo("Nothing is running.")


@app.command()
def stop() -> None:
    """Stop the server, after its running answers have ended or its grace period is over."""
    record = read_record()
    if record is None:
        typer.echo("Nothing is running.")
        return
    patience = record.grace_seconds + STOP_MARGIN_SECONDS
    with spinner(f"stopping {record.model}"):
        ended = end(record.pid, patience)
    if not ended:
        typer.echo(f"cortex: {record.model} did not end within {patience:g} seconds and was killed", err=True)
    typer.echo(f"{record.model} stopped.")


def _describe(record: ServerRecord) -> dict[str, Any]:
    health = ask_health(record)
    description: dict[str, Any] = {
        "model": record.model,
        "aliases": record.aliases,
        "state": "not responding",
        "pid": record.pid,
        "engine_pid": None,
        "url": record.base_url,
        "uptime_seconds": round(time.time() - record.started_at, 1),
        "context_length": None,
        "kv": None,
        "running": None,
        "waiting": None,
        "log": record.log,
    }
    if health is not None:
        description |= {
            "state": "running" if health.status == "ok" else health.status,
            "engine_pid": health.engine_pid,
            "context_length": health.context_length,
            "kv": asdict(health.kv) if health.kv else None,
            "running": health.running,
            "waiting": health.waiting,
        }
    return description


def _last_lines(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
