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
from api.command import completion
from api.command.batch import app as batch_app
from api.command.flags import with_server_flags
from api.command.keys import app as keys_app
from api.command.launch import CommandError, end, ensure_served, is_last, require_free_address, stop_model
from api.command.models import app as models_app
from api.command.pull import obtain, obtain_name
from api.command.terminal import bytes_text, chat, client_of, print_models, print_tuning, spinner
from api.command.tune import measure
from api.command.usage import usage
from api.engine.spawn import Ahead
from api.errors import os_error_text
from api.flags import ServerFlags
from api.flags.config_file import ConfigFileError
from api.models.files import ModelFilesError, num_file_bytes, resolve
from api.record import AlreadyRunningError, ModelHealth, ServerRecord, ask_health, read_record, started_record
from api.tenants.errors import TenantsError
from scheduler import garbage

LOG_LINES = 15
STOP_MARGIN_SECONDS = 10.0
"""Time that a server may take to end after its grace period, before it is killed."""

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(batch_app, name="batch")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Path of a .gguf file, or a name such as smollm2:135m.",
        autocompletion=completion.models_on_disk,
    ),
]


def main() -> None:
    """Run the command line. An expected failure prints one line on stderr and exits with 1, or 2 for wrong usage."""
    if completion.is_requested():
        completion.complete(app)
    completion.accept_shell_name()
    try:
        code = app(prog_name="cortex", standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except ConfigFileError as error:
        _fail(str(error), 2)
    except CommandError as error:
        lines = _last_lines(error.log)
        _fail(f"{error}; the end of {error.log}:" if lines else str(error), 1, lines)
    except (ModelFilesError, AlreadyRunningError, TenantsError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(os_error_text(error), 1)
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
    """Serve language models to a whole team over an OpenAI-compatible API."""
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
        bool, typer.Option("-d", "--detach", help="Return when the model is ready, without a chat.")
    ] = False,
) -> None:
    """Start MODEL if it does not run yet, and chat with it in the terminal."""
    served = ensure_served(model, flags)
    url = served.record.base_url
    if detach:
        typer.echo(f"{model} {'is ready' if served.is_new else 'already runs'} at {url}")
        return
    with client_of(served.record) as client:
        complete = chat(client, served.name)
    typer.echo(f"{served.name} still runs at {url}; stop it with 'cortex stop'.", err=True)
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
    path = obtain(model)
    require_free_address(flags)
    options = flags.options(model, path, log_file)
    ahead = Ahead(options.first_engine)  # it loads the model beside the following imports, which take a second
    with garbage.imports():
        from api.http.server import serve as serve_until_stopped

    raise typer.Exit(serve_until_stopped(options, ahead=ahead))


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(metavar="NAME", help="A name such as llama3.1:8b-gguf-q4-km or owner/repo:Q4_K_M.")
    ],
) -> None:
    """Download a model from Hugging Face. Resumes an interrupted download and verifies checksums."""
    path, is_new = obtain_name(model)
    typer.echo(f"{model} is {'now' if is_new else 'already'} on disk: {bytes_text(num_file_bytes(path))} at {path}")


@app.command()
@with_server_flags("gpu_layers", "repack", "kv_type", "flash_attn")
def tune(
    model: Model,
    flags: ServerFlags,
    seconds: Annotated[
        float, typer.Option(min=1.0, max=3600.0, help="Approximate duration. A shorter one tries fewer settings.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure which numbers of threads and of tokens per step are fastest for MODEL here. Later starts use them."""
    record = read_record()
    if record is not None:  # it would slow down, and distort the measurement
        raise AlreadyRunningError(record)
    outcome = measure(model, flags.model_options(model, resolve(model)).engine, seconds)
    if as_json:
        typer.echo(json.dumps(outcome, indent=2))
    else:
        print_tuning(model, outcome)


@app.command()
def ps(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """List the models that run."""
    record = read_record()
    models = [] if record is None else _describe(record)
    if as_json:
        typer.echo(json.dumps(models, indent=2))
    elif models:
        print_models(models)
    elif record is not None:
        typer.echo(f"A server without a model runs at {record.base_url}.")
    else:
        typer.echo("Nothing is running.")


@app.command()
def stop(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Stop only this model.", autocompletion=completion.served_models),
    ] = None,
) -> None:
    """Stop the server, or only MODEL. Waits until running requests end, at most for the grace period."""
    record = read_record() or started_record()
    if record is None:
        typer.echo("Nothing is running.")
        return
    name = model or record.model
    with spinner(f"stopping {name}"):
        if model is not None and not is_last(record, model):
            stop_model(record, model)
            ended = True
        else:
            patience = record.stop_seconds + STOP_MARGIN_SECONDS
            ended = end(record.pid, patience)
    if not ended:
        typer.echo(f"cortex: {name} did not end within {patience:g} seconds and was killed", err=True)
    typer.echo(f"{name} stopped.")


app.command()(usage)


def _describe(record: ServerRecord) -> list[dict[str, Any]]:
    """A row for each model of a server. If the server does not respond, one row from its record."""
    server = {
        "pid": record.pid,
        "url": record.base_url,
        "uptime_seconds": round(time.time() - record.started_at, 1),
        "log": record.log,
    }
    health = ask_health(record)
    if health is None:
        silent = ModelHealth(record.model, record.aliases, record.model_path, "not responding", None, None, None, 0, 0)
        return [server | _row(silent, silent.status) | {"running": None, "waiting": None}]
    states = {"ready": "running"} if health.status != "draining" else dict.fromkeys(("ready", "stopping"), "draining")
    return [server | _row(model, states.get(model.status, model.status)) for model in health.models]


def _row(model: ModelHealth, state: str) -> dict[str, Any]:
    row = asdict(model) | {"state": state}
    del row["status"]
    return row


def _last_lines(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
