"""SQLite files: private, migrated, with a write-ahead log, and with errors in one line."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

BUSY_SECONDS: Final = 10.0
"""How long a process waits for the changes of another one."""


class SqliteError(Exception):
    """A database cannot be used. The message is one line for the user."""


def connect(file: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """The database of the newest version. It is made if it does not exist. One thread at a time may use it.

    `migrations`: the statements that make each version from the one before. Raises SqliteError.
    """
    with errors_of(file):
        _make(file)
        connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            _write_ahead(connection)
            _migrate(connection, file, migrations)
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
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself after some errors, such as a full disk
            connection.execute("ROLLBACK")
        raise


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
    """Raises the errors of SQLite and of the system as SqliteError."""
    try:
        yield
    except sqlite3.Error as error:
        raise SqliteError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise SqliteError(f"{file} cannot be used: {error.strerror or error}") from error


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


def _migrate(connection: sqlite3.Connection, file: Path, migrations: Sequence[str]) -> None:
    newest = len(migrations)
    if _version(connection) == newest:
        return
    with transaction(connection):
        version = _version(connection)  # another process may have migrated it meanwhile
        if version > newest:
            raise SqliteError(
                f"{file} is of version {version}, but this Cortex knows only versions up to {newest}; "
                "use the Cortex that wrote it, or a newer one"
            )
        for statements in migrations[version:]:
            for statement in statements.split(";"):  # executescript would end the transaction
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {newest}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
