"""Starting a server in the background, waiting until it answers, and ending it."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import typer

from api.command.pull import obtain
from api.command.terminal import spinner
from api.flags import SERVER_ROWS, ServerFlags, ServerSettings, own_defaults
from api.home import home
from api.models.files import ModelFilesError, resolve
from api.record import Health, ModelHealth, ServerRecord, ask, ask_health, only_starter, read_record

POLL_SECONDS = 0.1
SILENCE_SECONDS = 60.0
"""A server that gave no sign of life for so long will not become ready."""
STOP_SECONDS = 30.0
"""What a model may take to end after the grace period."""
ABANDON_SECONDS = 5.0
"""What a server that is given up while it starts may take to end."""


class CommandError(Exception):
    """An expected failure, in one line for the user; the end of a log may follow it."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotReadyError(Exception):
    """Why a server will not become ready."""


@dataclass(frozen=True)
class Served:
    """Where a model answers."""

    record: ServerRecord
    name: str
    """By which it is served."""
    is_new: bool
    """Whether it was started just now."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """What is being started is not left behind, whichever way the command is ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_terminated_as_interrupted()
def ensure_served(model: str, flags: ServerFlags) -> Served:
    """The server of `model` once it answers: one that runs already, which is then asked to serve it too, or a new one.

    Raises CommandError and ModelFilesError.
    """
    record = read_record()
    if record is None:
        own_defaults(obtain(model))  # what cannot be loaded is said before anything is locked or written
        with spinner(f"starting {model}"), only_starter():
            record = read_record()
            if record is None:
                return Served(_start(model, flags), model, is_new=True)
    with spinner(f"waiting for the server of {record.model}"):
        served = _find(_wait_for_answer(record), model)
    name = served.model if served else model
    path = Path(served.path) if served and served.path else obtain(model)
    is_new = served is None or served.status in ("unloaded", "failed")
    with spinner(f"starting {model}" if is_new else f"asking for {model}"):
        _require_same_server(record, flags)
        try:
            _ask(record, "/v1/models/start", flags.start_request(name, path))
        except KeyboardInterrupt:
            if is_new:
                with contextlib.suppress(CommandError):
                    stop_model(record, name)
                typer.echo(f"cortex: interrupted; {name} is not left running", err=True)
            raise
    return Served(record, name, is_new=is_new)


def _wait_for_answer(record: ServerRecord) -> Health:
    """What a server that runs already says of itself, whether or not its models are there."""
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        if not psutil.pid_exists(record.pid) or read_record() is None:
            raise CommandError(f"the server of {record.model} (pid {record.pid}) ended just now", _log_of(record))
        if health := ask_health(record):
            return health
        time.sleep(POLL_SECONDS)
    raise CommandError(f"the server (pid {record.pid}) does not answer", _log_of(record))


def _find(health: Health, model: str) -> ModelHealth | None:
    """Among the models of a server, by any of its names or by its file."""
    named = [each for each in health.models if model in (each.model, *each.aliases)]
    try:
        path = resolve(model).resolve()
    except ModelFilesError:
        return next(iter(named), None)
    return next((each for each in (*named, *health.models) if each.path and Path(each.path).resolve() == path), None)


def _require_same_server(record: ServerRecord, flags: ServerFlags) -> None:
    """Raises CommandError for a flag that asks for another server than runs."""
    for row in SERVER_ROWS.values():
        wanted, current = getattr(flags, row.name), getattr(record, row.becomes)
        if wanted is None or row.converted(wanted) == current or (row.name, wanted) == ("port", 0):
            continue
        lacks = row.type in (bool, list) and not current
        shown = list(current) if row.type is list else current
        has = f"without {row.option}" if lacks else f"with {row.option} {shown}"
        raise CommandError(f"the server runs already {has}; 'cortex stop' ends it")


def stop_model(record: ServerRecord, model: str) -> None:
    """End one of the models of a server. Raises CommandError."""
    health = ask_health(record)
    if health is None:
        raise CommandError(f"the server (pid {record.pid}) does not answer", _log_of(record))
    served = _find(health, model)
    patience = record.grace_seconds + STOP_SECONDS
    _ask(record, "/v1/models/stop", {"model": served.model if served else model}, patience)


def is_last(record: ServerRecord, model: str) -> bool:
    """Whether a server serves nothing but this model."""
    health = ask_health(record)
    return health is not None and len(health.models) == 1 and _find(health, model) is not None


def _ask(record: ServerRecord, path: str, body: dict[str, Any], patience: float | None = None) -> None:
    try:
        status, answer = ask(record, "POST", path, body, patience)
    except (OSError, HTTPException, ValueError) as error:
        reason = f"the server of {record.model} (pid {record.pid}) has ended or does not answer: {error}"
        raise CommandError(reason, _log_of(record)) from error
    if status != HTTPStatus.OK:
        raise CommandError(answer["error"]["message"])


def _log_of(record: ServerRecord) -> Path | None:
    return Path(record.log) if record.log else None


def _start(model: str, flags: ServerFlags) -> ServerRecord:
    require_free_port(flags)
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
            record, _ = _wait_until_ready(server)
        except NotReadyError as error:
            raise CommandError(f"{model} did not start: {error}", log) from None
        except KeyboardInterrupt:
            typer.echo("cortex: interrupted; the server is not left running", err=True)
            raise
        undo.pop_all()
        return record


def server_command(model: str, flags: ServerFlags, log: Path) -> list[str]:
    """The command line of a server in the background."""
    # It reads no cortex.toml of its own: the flags hold what this process has read.
    # -P: a folder named `api` where the user happens to be is not ours.
    command = [sys.executable, "-P", "-m", "api", "serve", *flags.arguments(), f"--config={os.devnull}"]
    return [*command, f"--log-file={log}", "--", model]


def _new_log() -> Path:
    log = home() / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name("server.1.log"))
    return log


def require_free_port(flags: ServerFlags) -> None:
    """Raises CommandError when no server could listen there."""
    settings = ServerSettings(**flags.settings)
    host, port = settings.host, settings.port
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


def _wait_until_ready(server: psutil.Process) -> tuple[ServerRecord, Health]:
    """The record of `server`, and what it says, once its first model answers.

    Raises NotReadyError when it ended, says that it will not answer, or is silent for too long.
    """
    last_answer = time.monotonic()
    while not _has_ended(server):
        record = read_record()
        if record is not None and record.pid == server.pid and (health := ask_health(record)):
            last_answer = time.monotonic()
            if health.status == "ok":
                return record, health
            if health.status != "loading":
                raise NotReadyError(f"it is {health.status}" + (f": {health.reason}" if health.reason else ""))
        if time.monotonic() - last_answer > SILENCE_SECONDS:
            raise NotReadyError(f"it has not answered for {SILENCE_SECONDS:g} seconds")
        time.sleep(POLL_SECONDS)
    raise NotReadyError(f"the server ended{_cause_ofend(server)}")


def _has_ended(process: psutil.Process) -> bool:
    # A zombie has ended, whether or not its parent (in a container perhaps nobody) collects it.
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _cause_ofend(process: psutil.Process) -> str:
    try:
        code = process.wait(timeout=0)
    except psutil.TimeoutExpired:
        code = None
    if code is None:  # only a parent is told
        return ""
    return f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _end_spawned(server: psutil.Popen) -> None:
    try:
        end(server.pid, ABANDON_SECONDS)
    finally:
        # It leads a group of its own, so this reaches an engine that outlived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)


def end(pid: int, patience: float) -> bool:
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
    if _wait_forend(server, patience):
        return True
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_forend(server, patience=5.0)
    return False


def _wait_forend(process: psutil.Process, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not _has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
