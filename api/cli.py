"""The `cortex` command."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psutil
import typer

from api.model_files import ModelFilesError, resolve
from api.options import ServerFlags, with_server_flags
from api.record import AlreadyRunningError, ServerRecord, ask_health, home, only_starter, read_record
from api.terminal import chat, print_servers, spinner

POLL_SECONDS = 0.1
SILENCE_SECONDS = 60.0
"""A server that gave no sign of life for so long will not become ready."""
STOP_MARGIN_SECONDS = 10.0
"""What a server may take to end after its grace period."""
ABANDON_SECONDS = 5.0
"""What a server that is given up while it starts may take to end."""
LOG_LINES = 15

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Path of a .gguf file, or a name such as smollm2:135m.")]


class CommandError(Exception):
    """An expected failure, in one line for the user; the end of a log may follow it."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotReadyError(Exception):
    """Why a server will not become ready."""


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
        typer.echo(f"cortex {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cortex-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


@app.command()
@with_server_flags
def run(
    model: Model,
    flags: ServerFlags,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return when the model answers, instead of opening a chat.")
    ] = False,
) -> None:
    """Start a server for MODEL unless it runs already, and chat with it in the terminal."""
    record, started = _ensure_served(model, flags)
    if detach:
        typer.echo(f"{model} {'answers' if started else 'runs already'} at {record.base_url}")
        return
    complete = chat(record.connect_url, record.model)
    typer.echo(f"{record.model} still runs at {record.base_url}; 'cortex stop' ends it.", err=True)
    if not complete and not sys.stdin.isatty():
        raise typer.Exit(1)


@app.command()
@with_server_flags
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
    _require_free_port(flags.host, flags.port)
    from api.server import serve as serve_until_stopped

    raise typer.Exit(serve_until_stopped(flags.options(model, path, log_file)))


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
        ended = _end(record.pid, patience)
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


# Starting and ending a server


def _ensure_served(model: str, flags: ServerFlags) -> tuple[ServerRecord, bool]:
    """The server of `model` once it answers, and whether it was started just now.

    Raises CommandError, ModelFilesError, or AlreadyRunningError when another model is served.
    """
    record = read_record()
    if record is None:
        resolve(model)  # what cannot be loaded is said before anything is locked or written
        with spinner(f"starting {model}"), only_starter():
            record = read_record()
            if record is None:
                return _start(model, flags), True
    if not _is_model_of(record, model):
        raise AlreadyRunningError(record)
    try:
        with spinner(f"waiting for {model}"):
            return _wait_until_ready(psutil.Process(record.pid)), False
    except psutil.NoSuchProcess:
        raise CommandError(f"the server of {model} (pid {record.pid}) ended just now") from None
    except NotReadyError as error:
        reason = f"{model} runs already (pid {record.pid}) but is not ready: {error}"
        raise CommandError(reason, Path(record.log) if record.log else None) from None


def _is_model_of(record: ServerRecord, model: str) -> bool:
    try:
        return resolve(model).resolve() == Path(record.model_path).resolve()
    except ModelFilesError:
        if model in (record.model, *record.aliases):
            return True
        raise


def _start(model: str, flags: ServerFlags) -> ServerRecord:
    _require_free_port(flags.host, flags.port)
    log = _new_log()
    with log.open("ab") as output, contextlib.ExitStack() as undo:
        server = psutil.Popen(
            server_command(model, flags, log),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        undo.callback(_end_spawned, server)
        try:
            record = _wait_until_ready(server)
        except NotReadyError as error:
            raise CommandError(f"{model} did not start: {error}", log) from None
        except KeyboardInterrupt:
            typer.echo("cortex: interrupted; the server is not left running", err=True)
            raise
        undo.pop_all()
        return record


def server_command(model: str, flags: ServerFlags, log: Path) -> list[str]:
    """The command line of a server in the background."""
    # -P: a folder named `api` where the user happens to be is not ours.
    command = [sys.executable, "-P", "-m", "api", "serve", *flags.arguments(), f"--log-file={log}"]
    return [*command, "--", model]


def _new_log() -> Path:
    log = home() / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name("server.1.log"))
    return log


def _last_lines(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def _require_free_port(host: str, port: int) -> None:
    """Raises CommandError when no server could listen there."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror}") from error
    failures = [failure for *kind, _, address in addresses if (failure := _listening_error(kind, address))]
    if any(failure.errno == errno.EADDRINUSE for failure in failures):
        raise CommandError(f"port {port} on {host} is taken; choose another with --port")
    # A name may stand for an address that this machine lacks, such as localhost for ::1; one is enough.
    if len(failures) == len(addresses):
        raise CommandError(f"cannot listen on {host}, port {port}: {failures[0].strerror}")


def _listening_error(kind: list[Any], address: Any) -> OSError | None:
    try:
        with socket.socket(*kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return error
    return None


def _wait_until_ready(server: psutil.Process) -> ServerRecord:
    """The record of `server` once its model answers.

    Raises NotReadyError when it ended, says that it will not answer, or is silent for too long.
    """
    last_answer = time.monotonic()
    while not _has_ended(server):
        record = read_record()
        if record is not None and record.pid == server.pid and (health := ask_health(record)):
            last_answer = time.monotonic()
            if health.status == "ok":
                return record
            if health.status != "loading":
                raise NotReadyError(f"it is {health.status}" + (f": {health.reason}" if health.reason else ""))
        if time.monotonic() - last_answer > SILENCE_SECONDS:
            raise NotReadyError(f"it has not answered for {SILENCE_SECONDS:g} seconds")
        time.sleep(POLL_SECONDS)
    raise NotReadyError(f"the server ended{_cause_of_end(server)}")


def _has_ended(process: psutil.Process) -> bool:
    # A zombie has ended, whether or not its parent (in a container perhaps nobody) collects it.
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _cause_of_end(process: psutil.Process) -> str:
    try:
        code = process.wait(timeout=0)
    except psutil.TimeoutExpired:
        code = None
    if code is None:  # only a parent is told
        return ""
    return f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _end_spawned(server: psutil.Popen) -> None:
    try:
        _end(server.pid, ABANDON_SECONDS)
    finally:
        # It leads a group of its own, so this reaches an engine that outlived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)


def _end(pid: int, patience: float) -> bool:
    """End a server; False if it had to be killed, with its engine.

    Raises CommandError when it belongs to somebody else.
    """
    try:
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        server.terminate()
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        raise CommandError(f"the server (pid {pid}) belongs to another user") from None
    if _wait_for_end(server, patience):
        return True
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_for_end(server, patience=5.0)
    return False


def _wait_for_end(process: psutil.Process, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not _has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
