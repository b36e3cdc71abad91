"""The SQLite database of files and batches: `batches.db` in $CORTEX_HOME.

Only one server at a time uses a $CORTEX_HOME (`api/record.py`), so nobody else changes it.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api import sqlite
from api.sqlite import SqliteError
from api.storage.errors import StorageError, storage_errors

NAME: Final = "batches.db"
_NAME_FOR_CLIENTS: Final = "The server's database of files"

MIGRATIONS: Final = (
    """
    CREATE TABLE files (
        number INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of their creation
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        filename TEXT NOT NULL,
        purpose TEXT NOT NULL,
        num_bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL, -- times are seconds since the epoch
        expires_at INTEGER
    );
    CREATE INDEX files_by_owner ON files (owner, number);
    CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
    """,
    """
    CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of their creation
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        tenant TEXT NOT NULL, -- whose shares its lines use
        endpoint TEXT NOT NULL,
        input_file TEXT NOT NULL,
        metadata TEXT NOT NULL, -- a JSON object or null
        output_seconds INTEGER,
        status TEXT NOT NULL,
        ending TEXT, -- the status that follows when its files are written
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        in_progress_at INTEGER,
        finalizing_at INTEGER,
        completed_at INTEGER,
        failed_at INTEGER,
        expired_at INTEGER,
        cancelling_at INTEGER,
        cancelled_at INTEGER,
        models TEXT NOT NULL DEFAULT '[]', -- JSON lists
        known_models TEXT NOT NULL DEFAULT '[]',
        errors TEXT NOT NULL DEFAULT '[]',
        total INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        cached_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        reasoning_tokens INTEGER NOT NULL DEFAULT 0,
        output_file TEXT,
        error_file TEXT
    );
    CREATE INDEX batches_by_owner ON batches (owner, number);
    CREATE TABLE batch_lines (
        batch INTEGER NOT NULL REFERENCES batches (number),
        line INTEGER NOT NULL, -- its number in the input file, from 1
        custom_id TEXT NOT NULL,
        start INTEGER NOT NULL, -- its first byte in the file
        size INTEGER NOT NULL,
        model_group INTEGER NOT NULL, -- the lines of one model
        place INTEGER NOT NULL, -- in the order of execution
        PRIMARY KEY (batch, line)
    ) WITHOUT ROWID;
    CREATE INDEX batch_lines_by_place ON batch_lines (batch, model_group, place);
    CREATE TABLE batch_answers (
        batch INTEGER NOT NULL REFERENCES batches (number),
        line INTEGER NOT NULL,
        is_error INTEGER NOT NULL,
        data BLOB NOT NULL, -- a line of an output file
        UNIQUE (batch, line)
    );
    """,
)
"""The statements that make each version from the one before. Never change one that has been released: add another."""


class Database:
    """The database of a folder. All threads may use it; one at a time does, and the others wait.

    A transaction that has ended survives the end of the process and of the machine.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StorageError with one line if the database is damaged or of a newer version."""
        self.path = folder / NAME
        self._lock = threading.Lock()
        try:
            self._connection = sqlite.connect(self.path, MIGRATIONS)
        except SqliteError as error:
            raise StorageError(str(error)) from error
        try:
            self._check()
        except BaseException:
            self._connection.close()
            raise

    def _check(self) -> None:
        with storage_errors(str(self.path)):
            self._connection.execute("PRAGMA synchronous = FULL")
            [[found], *_] = self._connection.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise StorageError(f"{self.path} is damaged: {' '.join(found.split())}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All reads of the block see one state. Raises StorageError."""
        with self._lock, storage_errors(_NAME_FOR_CLIENTS), sqlite.snapshot(self._connection):
            yield self._connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All changes of the block, or none. Raises StorageError, of the kind StorageFullError if the disk is full."""
        with self._lock, storage_errors(_NAME_FOR_CLIENTS), sqlite.transaction(self._connection):
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()
