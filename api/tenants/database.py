"""The SQLite database of tenants, keys and usage: `cortex.db` in $CORTEX_HOME."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api.home import home
from api.tenants.errors import TenantsError

NAME: Final = "cortex.db"
BUSY_SECONDS: Final = 10.0
"""How long a process waits for the changes of another one."""

MIGRATIONS: Final = (
    """
    CREATE TABLE tenants (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        weight REAL NOT NULL CHECK (weight > 0),
        priority TEXT NOT NULL,
        max_waiting INTEGER,
        max_concurrent INTEGER,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        models TEXT NOT NULL, -- a JSON list, empty for all
        is_admin INTEGER NOT NULL,
        created_at REAL NOT NULL, -- times are seconds since the epoch
        expires_at REAL
    );
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,
        tenant_id INTEGER NOT NULL REFERENCES tenants (id),
        hash BLOB NOT NULL UNIQUE,
        ending TEXT NOT NULL, -- the last characters of the key
        created_at REAL NOT NULL,
        expires_at REAL,
        revoked_at REAL
    );
    CREATE INDEX keys_by_tenant ON keys (tenant_id);
    """,
    """
    CREATE TABLE usage (
        day TEXT NOT NULL, -- of the server's local time, such as 2030-01-31
        tenant TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        answer_tokens INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, model)
    ) WITHOUT ROWID;
    """,
)
"""The statements that make each version from the one before. Never change one that has been released: add another."""


class DatabaseError(TenantsError):
    """The database cannot be used."""


def path() -> Path:
    return home() / NAME


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """The database, of the newest version. It is made if it does not exist. Raises DatabaseError."""
    connection = connect()
    try:
        with errors_of(path()):
            yield connection
    finally:
        connection.close()


def connect() -> sqlite3.Connection:
    """As `database`, for callers that keep the connection. One thread at a time may use it."""
    file = path()
    with errors_of(file):
        _make(file)
        connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            _write_ahead(connection)
            _migrate(connection, file)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All changes of the block, or none. Waits for the changes of other processes first."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads of the block see one state of the database. They wait for nobody."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """Raises the errors of SQLite and of the system as DatabaseError."""
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise DatabaseError(f"{file} cannot be used: {error.strerror or error}") from error


def _make(file: Path) -> None:
    """Make the file, which only the user may open. SQLite gives the files beside it the same mode.

    Never opens a file that exists. When a process closes a file, it loses its locks on it, also those of SQLite. Other
    processes would then remove the log that this process still writes to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set the journal mode in which readers and a writer do not wait for each other."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # SQLite does not wait while another process sets it
            is_busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    newest = len(MIGRATIONS)
    if _version(connection) == newest:
        return
    with transaction(connection):
        version = _version(connection)  # another process may have migrated it meanwhile
        if version > newest:
            raise DatabaseError(
                f"{file} is of version {version}, but this Cortex knows only versions up to {newest}; "
                "use the Cortex that wrote it, or a newer one"
            )
        for statements in MIGRATIONS[version:]:
            for statement in statements.split(";"):  # executescript would end the transaction
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {newest}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
