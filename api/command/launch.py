"""Starts a server in the background, waits until it is ready, and ends it."""

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
from api.flags import SERVER_ROWS, ServerFlags, ServerSettings
from api.home import home
from api.http.sockets import require_free_socket, tls_of
from api.models.files import ModelFilesError, resolve
from api.record import Health, ModelHealth, ServerRecord, ask, ask_health, only_starter, read_record

POLL_SECONDS = 0.1
SILENCE_SECONDS = 60.0
"""A server that does not answer for this time counts as failed."""
STOP_SECONDS = 30.0
"""Time that a model may take to end after the grace period."""
ABANDON_SECONDS = 5.0
"""Time that a server may take to end if its start is given up."""


class CommandError(Exception):
    """An expected failure. The message is one line for the user; the end of `log` may follow it."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotReadyError(Exception):
    """A server that will not become ready. The message is the reason."""


@dataclass(frozen=True)
class Served:
    """A served model and its server."""

    record: ServerRecord
    name: str
    """The name by which clients request the model."""
    is_new: bool
    """Whether this command started the model."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Handle SIGTERM like SIGINT, so that neither leaves a half-started server behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_terminated_as_interrupted()
def ensure_served(model: str, flags: ServerFlags) -> Served:
    """Serve `model` on the running server, or else on a new one, and wait until it is ready.

    Raises CommandError if that fails, and ModelFilesError if the model's files cannot be used.
    """
    record = read_record()
    if record is None:
        flags.model_options(model, obtain(model))  # fails before anything is locked or written
        with spinner(f"starting {model}"), only_starter():
            record = read_record()
            if record is None:
                return Served(_start(model, flags), model, is_new=True)
    with spinner(f"waiting for the server of {record.model}"):
        served = _find(_wait_for_answer(record), model)
    name = served.model if served else model
    path = Path(served.path) if served and served.path else obtain(model)
    is_new = served is None or served.status in ("unloaded", "failed")
    with spinner(f"starting {model}" if is_new else f"waiting for {model}"):
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
    """The health of a running server, ready or not. Raises CommandError if the server does not answer."""
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        if not psutil.pid_exists(record.pid) or read_record() is None:
            raise CommandError(f"the server of {record.model} (pid {record.pid}) ended just now", _log_of(record))
        if health := ask_health(record):
            return health
        time.sleep(POLL_SECONDS)
    raise CommandError(f"the server (pid {record.pid}) does not answer", _log_of(record))


def _find(health: Health, model: str) -> ModelHealth | None:
    """The model of a server with this name, alias or file; None if there is none."""
    named = [each for each in health.models if model in (each.model, *each.aliases)]
    try:
        path = resolve(model).resolve()
    except ModelFilesError:
        return next(iter(named), None)
    return next((each for each in (*named, *health.models) if each.path and Path(each.path).resolve() == path), None)


def _require_same_server(record: ServerRecord, flags: ServerFlags) -> None:
    """Raises CommandError if a flag differs from the running server's setting."""
    for row in SERVER_ROWS.values():
        wanted, current = getattr(flags, row.name), getattr(record, row.becomes)
        if wanted is None or row.converted(wanted) == current or (row.name, wanted) == ("port", 0):
            continue
        lacks = current is None or (row.type in (bool, list) and not current)
        shown = list(current) if row.type is list else current
        has = f"without {row.option}" if lacks else f"with {row.option}{'' if current is True else f' {shown}'}"
        raise CommandError(f"the server already runs {has}; stop it with 'cortex stop'")


def stop_model(record: ServerRecord, model: str) -> None:
    """Stop a model of a server. Raises CommandError if the server refuses or does not answer."""
    health = ask_health(record)
    if health is None:
        raise CommandError(f"the server (pid {record.pid}) does not answer", _log_of(record))
    served = _find(health, model)
    patience = record.grace_seconds + STOP_SECONDS
    _ask(record, "/v1/models/stop", {"model": served.model if served else model}, patience)


def is_last(record: ServerRecord, model: str) -> bool:
    """Whether this is the only model of a server."""
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
    require_free_address(flags)
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
    # The server must not read cortex.toml: the flags contain what this process has read from it.
    # -P: Python must not import a folder named `api` in the working directory.
    command = [sys.executable, "-P", "-m", "api", "serve", *flags.arguments(), f"--config={os.devnull}"]
    return [*command, f"--log-file={log}", "--", model]


def _new_log() -> Path:
    log = home() / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name("server.1.log"))
    return log


def require_free_address(flags: ServerFlags) -> None:
    """Raises CommandError or OSError if a server cannot listen where the flags say, or cannot use their certificate."""
    settings = ServerSettings(**flags.settings)
    tls_of(settings)
    if settings.unix_socket is not None:
        require_free_socket(Path(settings.unix_socket))
        return
    host, port = settings.host, settings.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror}") from error
    failures = [failure for *kind, _, address in addresses if (failure := _listening_error(kind, address))]
    if any(failure.errno == errno.EADDRINUSE for failure in failures):
        raise CommandError(f"port {port} on {host} is taken; choose another with --port")
    # A host name may have an address that this machine lacks, as localhost has ::1. One usable address is enough.
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
    """Wait until the first model of `server` is ready. Returns the server's record and health.

    Raises NotReadyError if the server ends, drains or fails, or does not answer for SILENCE_SECONDS.
    """
    last_answer = time.monotonic()
    while not _has_ended(server):
        record = read_record()
        if record is not None and record.pid == server.pid and (health := ask_health(record)):
            last_answer = time.monotonic()
            if health.status == "ok":
                return record, health
            if health.status != "loading":
                raise NotReadyError(
                    f"the server's status is {health.status}" + (f": {health.reason}" if health.reason else "")
                )
        if time.monotonic() - last_answer > SILENCE_SECONDS:
            raise NotReadyError(f"the server has not answered for {SILENCE_SECONDS:g} seconds")
        time.sleep(POLL_SECONDS)
    raise NotReadyError(f"the server ended{_cause_of_end(server)}")


def _has_ended(process: psutil.Process) -> bool:
    # A zombie has ended, even if no parent collects it, as may happen in a container.
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _cause_of_end(process: psutil.Process) -> str:
    try:
        code = process.wait(timeout=0)
    except psutil.TimeoutExpired:
        code = None
    if code is None:  # only the parent process gets the code
        return ""
    return f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"


def _end_spawned(server: psutil.Popen) -> None:
    try:
        end(server.pid, ABANDON_SECONDS)
    finally:
        # The server leads its own process group, so this also kills an engine that outlived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)


def end(pid: int, patience: float) -> bool:
    """End a server. Returns False if it did not end within `patience` seconds and was killed with its engine.

    Raises CommandError if it belongs to another user.
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
