"""The SQLite database of tenants, keys and usage: `cortex.db` in $CORTEX_HOME."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api import sqlite
from api.home import home
from api.sqlite import SqliteError
from api.tenants.errors import TenantsError

NAME: Final = "cortex.db"

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
    with errors_of(path()):
        return sqlite.connect(path(), MIGRATIONS)


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """Raises the errors of SQLite and of the system as DatabaseError."""
    try:
        with sqlite.errors_of(file):
            yield
    except SqliteError as error:
        raise DatabaseError(str(error)) from error
