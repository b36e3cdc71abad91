"""The running server: its record on disk, which is locked while the server lives, and its health."""

import contextlib
import fcntl
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

from api.flags import ServerOptions, ServerSettings
from api.home import home
from api.tenants.secret import credentials
from api.tls import client_context

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, kw_only=True)
class ServerRecord(ServerSettings):
    """The process, model and settings of a server, written to disk for other commands."""

    pid: int
    model: str
    model_path: str
    aliases: tuple[str, ...]
    log: str | None
    on_demand: bool
    started_at: float
    """Seconds since the epoch."""
    certificate: str | None = None
    """The server's own certificate in PEM form, as it was when the server started; None for plain HTTP."""

    @property
    def connect_host(self) -> str:
        """The host for connections from this machine."""
        return _ANY_ADDRESS.get(self.host, self.host)

    @property
    def connect_url(self) -> str:
        """The API's URL for connections from this machine, over the Unix socket if there is one."""
        return "http://localhost/v1" if self.unix_socket else self._api_url(self.connect_host)

    @property
    def base_url(self) -> str:
        """The API's URL to show to users, or the Unix socket as `unix:PATH`."""
        if self.unix_socket:
            return f"unix:{self.unix_socket}"
        local = self.host in _LOOPBACK or self.host in _ANY_ADDRESS
        return self._api_url("localhost" if local else self.host)

    def _api_url(self, host: str) -> str:
        return f"{'https' if self.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


class AlreadyRunningError(Exception):
    """Another server holds the record."""

    def __init__(self, record: ServerRecord | None) -> None:
        self.record = record
        """None while the other server is still starting, or already ending."""
        if record is None:
            super().__init__("another server is starting or stopping right now; try again in a moment")
        else:
            super().__init__(
                f"{record.model} is already served at {record.base_url} (pid {record.pid}); "
                "stop it with 'cortex stop', or add a model to its server with 'cortex run -d'"
            )


# There are two locks. server.lock admits one server. The record's own lock is taken before the file gets its final
# name. A reader recognizes a living server's record by this lock, even if another process has reused the pid. Readers
# never touch server.lock, so they cannot block a server that starts.


@contextlib.contextmanager
def hold_record(options: ServerOptions, port: int, certificate: str | None = None) -> Iterator[ServerRecord]:
    """Record this process as the running server on `port` until the block ends. Yields the record.

    Raises AlreadyRunningError if another server runs, OSError if $CORTEX_HOME cannot be written.
    """
    settings = {item.name: getattr(options, item.name) for item in fields(ServerSettings)}
    record = ServerRecord(
        **settings | {"port": port, "auth": options.demands_keys},
        pid=os.getpid(),
        model=options.first.name,
        model_path=str(options.first.path),
        aliases=options.first.aliases,
        log=options.log_file,
        on_demand=options.loads_on_demand,
        started_at=time.time(),
        certificate=certificate,
    )
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.lock").open("a") as lock:
        _become_the_server(lock)
        draft = folder / "server.json.tmp"
        with draft.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(asdict(record), file)
            file.flush()
            draft.replace(_record_path())
            try:
                yield record
            finally:
                _record_path().unlink(missing_ok=True)


def _become_the_server(lock: IO[str], patience: float = 2.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Without a record the other server is starting or ending, which is soon finished.
            record = read_record()
            if record is not None or time.monotonic() > deadline:
                raise AlreadyRunningError(record) from None
            time.sleep(0.05)
        else:
            return


def read_record() -> ServerRecord | None:
    """The record of the running server; None if no server runs. Files of an earlier server are ignored."""
    try:
        with _record_path().open() as file:
            if not _is_locked(file):
                return None
            values = json.load(file)
            tuples = {name: tuple(values[name]) for name in ("aliases", "cors_origins")}
            return ServerRecord(**values | tuples)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):  # not a record
        return None


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _record_path() -> Path:
    return home() / "server.json"


@contextlib.contextmanager
def only_starter() -> Iterator[None]:
    """Hold the lock for looking for a server and starting one. Waits for other commands that do so."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "start.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def started_record() -> ServerRecord | None:
    """The record of a server that another command is starting. Waits for the start; None if there is none."""
    if not (home() / "start.lock").exists():
        return None
    with only_starter():
        return read_record()


@dataclass(frozen=True)
class KvMemory:
    """The KV cache of an engine in /healthz. held + cached + free = all tokens."""

    tokens: int
    bytes: int
    held_tokens: int
    cached_tokens: int
    free_tokens: int
    max_tokens: int = 0
    """What `tokens` can become, as the size follows the load. 0 if a server of an older version does not report it."""


@dataclass(frozen=True)
class ModelHealth:
    """A model in /healthz."""

    model: str
    aliases: tuple[str, ...]
    path: str | None
    """None if the server's secret cannot be read, so that this process cannot show that it acts for the owner."""
    status: str
    """`ready`, `loading`, `stopping`, `unloaded` or `failed`."""
    engine_pid: int | None
    context_length: int | None
    kv: KvMemory | None
    running: int
    waiting: int

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        known = {item.name: body[item.name] for item in fields(cls)}
        kv = body["kv"]
        if kv is not None:
            known["kv"] = KvMemory(**{item.name: kv[item.name] for item in fields(KvMemory) if item.name in kv})
        return cls(**known | {"aliases": tuple(body["aliases"])})


@dataclass(frozen=True)
class Health:
    """The answer of /healthz."""

    status: str
    """`ok`, `loading`, `draining` or `failed`."""
    models: tuple[ModelHealth, ...]
    pid: int
    uptime_seconds: float
    version: str
    reason: str | None = None
    """Why it failed."""

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Ignores unknown fields, as of later versions. Raises TypeError or KeyError if the answer is invalid."""
        known = {item.name: body[item.name] for item in fields(cls) if item.name in body}
        return cls(**known | {"models": tuple(map(ModelHealth.from_json, body["models"]))})


def ask_health(record: ServerRecord, timeout: float = 5.0) -> Health | None:
    """The health of a server; None if it does not answer."""
    try:
        return Health.from_json(ask(record, "GET", "/healthz", timeout=timeout)[1])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return None


def ask(
    record: ServerRecord, method: str, path: str, body: dict[str, Any] | None = None, timeout: float | None = None
) -> tuple[int, Any]:
    """The status and JSON of a request's answer. Raises OSError, HTTPException or ValueError if the request fails."""
    # The standard library's client, because a larger one would slow down the start of `cortex ps`.
    connection = _connection(record, timeout)
    try:
        content = None if body is None else json.dumps(body)
        kind = {"Content-Type": "application/json"} if content else {}
        connection.request(method, path, content, kind | credentials())
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(record: ServerRecord, timeout: float | None) -> http.client.HTTPConnection:
    if record.unix_socket:
        return _UnixConnection(record.unix_socket, timeout)
    if record.certificate:
        context = client_context(record.certificate)
        return http.client.HTTPSConnection(record.connect_host, record.port, timeout=timeout, context=context)
    return http.client.HTTPConnection(record.connect_host, record.port, timeout=timeout)
