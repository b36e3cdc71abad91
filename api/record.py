"""The one server that runs: its record on disk, which only a living server can hold, and what it says of itself."""

import contextlib
import fcntl
import http.client
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

from api.flags import ServerOptions, ServerSettings
from api.home import home

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, kw_only=True)
class ServerRecord(ServerSettings):
    """What a server writes down about itself and its settings, for the other commands."""

    pid: int
    model: str
    model_path: str
    aliases: tuple[str, ...]
    log: str | None
    on_demand: bool
    started_at: float
    """Seconds since the epoch."""

    @property
    def connect_host(self) -> str:
        """Where this machine reaches the server."""
        return _ANY_ADDRESS.get(self.host, self.host)

    @property
    def connect_url(self) -> str:
        """The API as this machine reaches it."""
        return _api_url(self.connect_host, self.port)

    @property
    def base_url(self) -> str:
        """The API as people write it down."""
        local = self.host in _LOOPBACK or self.host in _ANY_ADDRESS
        return _api_url("localhost" if local else self.host, self.port)


def _api_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


class AlreadyRunningError(Exception):
    """Another server holds the record."""

    def __init__(self, record: ServerRecord | None) -> None:
        self.record = record
        """None while the other server is still starting, or already ending."""
        if record is None:
            super().__init__("another server is starting or stopping right now; try again in a moment")
        else:
            super().__init__(
                f"{record.model} is served already at {record.base_url} (pid {record.pid}); "
                "'cortex stop' ends it, and 'cortex run -d' serves another model beside it"
            )


# Two locks. server.lock admits one server. The record has a lock of its own, taken before the file gets its
# name: whoever reads it can tell a living server's record from one left behind, whatever became of the pid, and
# never touches the lock that servers compete for.


@contextlib.contextmanager
def hold_record(options: ServerOptions, port: int) -> Iterator[ServerRecord]:
    """Be the server that runs, listening on `port`, until the block ends.

    Raises AlreadyRunningError while another server is, and OSError when $CORTEX_HOME cannot be written.
    """
    settings = {item.name: getattr(options, item.name) for item in fields(ServerSettings)}
    record = ServerRecord(
        **settings | {"port": port},
        pid=os.getpid(),
        model=options.first.name,
        model_path=str(options.first.path),
        aliases=options.first.aliases,
        log=options.log_file,
        on_demand=options.loads_on_demand,
        started_at=time.time(),
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
            # Without a record the other server is just starting or ending, which is soon over.
            record = read_record()
            if record is not None or time.monotonic() > deadline:
                raise AlreadyRunningError(record) from None
            time.sleep(0.05)
        else:
            return


def read_record() -> ServerRecord | None:
    """The record of the server that runs; None when there is none, whatever files an earlier one left."""
    try:
        with _record_path().open() as file:
            if not _is_locked(file):
                return None
            values = json.load(file)
            tuples = {name: tuple(values[name]) for name in ("aliases", "cors_origins")}
            return ServerRecord(**values | tuples)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):  # written by something else
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
    """Wait until no other command is between looking for a server and having started one."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "start.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def started_record() -> ServerRecord | None:
    """The record of the server that another command is starting just now, once it has; None if none is."""
    if not (home() / "start.lock").exists():
        return None
    with only_starter():
        return read_record()


@dataclass(frozen=True)
class KvMemory:
    """The engine's KV memory, as /healthz tells it; held + cached + free = all tokens."""

    tokens: int
    bytes: int
    held_tokens: int
    cached_tokens: int
    free_tokens: int


@dataclass(frozen=True)
class ModelHealth:
    """One of the models of /healthz."""

    model: str
    aliases: tuple[str, ...]
    path: str | None
    """None if the server takes us for somebody from another machine."""
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
            known["kv"] = KvMemory(**{item.name: kv[item.name] for item in fields(KvMemory)})
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
        """Raises TypeError and KeyError for what is no such answer; fields of later versions are left out."""
        known = {item.name: body[item.name] for item in fields(cls) if item.name in body}
        return cls(**known | {"models": tuple(map(ModelHealth.from_json, body["models"]))})


def ask_health(record: ServerRecord, timeout: float = 5.0) -> Health | None:
    """What the server says of itself; None when it does not answer."""
    try:
        return Health.from_json(ask(record, "GET", "/healthz", timeout=timeout)[1])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return None


def ask(
    record: ServerRecord, method: str, path: str, body: dict[str, Any] | None = None, timeout: float | None = None
) -> tuple[int, Any]:
    """The status and the JSON of an answer. Raises OSError, HTTPException and ValueError when there is none."""
    # The standard library's client: `cortex ps` should not wait for a larger one to be imported.
    connection = http.client.HTTPConnection(record.connect_host, record.port, timeout=timeout)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
