"""Batches: their state, where their lines are in the input file, and the answers that have been recorded.

Each change is one transaction, so a batch goes on after any end of the process. An answer is recorded once for each
line. The answers stay here until they are in the output files.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any, Final, Literal

from api.storage.batch import ENDED, Answered, Batch, Ending, InputError, Line, Status, Usage
from api.storage.database import Database
from api.storage.errors import StorageError
from api.storage.files import Also, StoredFile

WINDOW_SECONDS: Final = 24 * 3600
"""How long after its creation a batch expires."""
MAX_OPEN: Final = 100
"""Batches of one owner that have not ended."""
_FORGOTTEN_AT_ONCE: Final = 500
"""Lines and answers that one transaction removes, so that others wait for a few milliseconds only."""

_WRITTEN_LINES: Final = 256
_WRITTEN_BYTES: Final = 1024 * 1024
"""Lines and bytes that are read at a time for the output files."""


class FileInUseError(StorageError):
    """A batch still reads the file."""


class TooManyBatchesError(StorageError):
    """The owner has too many batches that have not ended."""


class CannotCancelError(StorageError):
    """The batch has ended, or its files are being written."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"Cannot cancel a batch with status '{status}'.")


_JSON: Final = ("metadata", "models", "known_models", "errors")
_USAGE: Final = tuple(field.name for field in fields(Usage))
_COLUMNS: Final = tuple(
    name for field in fields(Batch) for name in (_USAGE if field.name == "usage" else (field.name,))
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM batches"  # noqa: S608 - names of columns
_OPEN: Final = f"status NOT IN ({', '.join(map(repr, ENDED))})"


class BatchStore:
    """The batches of a server, by owner and id. Nobody finds the batches of others.

    All methods block for as long as the disk takes: call them in threads. All threads may call them at once. All raise
    StorageError if the database fails.
    """

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._watcher: Callable[[int], None] = lambda _: None

    def watch(self, watcher: Callable[[int], None]) -> None:
        """`watcher` gets the number of each batch that is made or cancelled, in the thread that does it."""
        self._watcher = watcher

    # -- for clients -------------------------------------------------------------------------------------------------

    def create(
        self,
        owner: str,
        tenant: str,
        endpoint: str,
        input_file: str,
        metadata: Mapping[str, str] | None,
        output_seconds: int | None,
    ) -> Batch:
        """A new batch. Raises TooManyBatchesError, and KeyError if the owner has no such file."""
        now = int(self._now())
        with self._database.writing() as connection:
            if not _has_file(connection, owner, input_file):
                raise KeyError(input_file)
            query = f"SELECT count(*) FROM batches WHERE owner = ? AND {_OPEN}"  # noqa: S608
            [num_open] = connection.execute(query, (owner,)).fetchone()
            if num_open >= MAX_OPEN:
                raise TooManyBatchesError(
                    f"You have {num_open} batches that have not ended, and may have {MAX_OPEN}. Cancel some, or wait."
                )
            batch_id = f"batch_{secrets.token_hex(16)}"
            connection.execute(
                "INSERT INTO batches (id, owner, tenant, endpoint, input_file, metadata, output_seconds, status, "
                "created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'validating', ?, ?)",
                (
                    *(batch_id, owner, tenant, endpoint, input_file, json.dumps(metadata), output_seconds),
                    *(now, now + WINDOW_SECONDS),
                ),
            )
            batch = _found(connection, owner, batch_id)
        assert batch is not None
        self._watcher(batch.number)
        return batch

    def get(self, owner: str, batch_id: str) -> Batch | None:
        with self._database.reading() as connection:
            return _found(connection, owner, batch_id)

    def page(self, owner: str, after: str | None = None, limit: int = 20) -> list[Batch]:
        """At most `limit` batches, the newest first, those after the batch with the id `after`.

        Raises KeyError if there is no batch `after`.
        """
        with self._database.reading() as connection:
            before = 2**62
            if after is not None:
                last = _found(connection, owner, after)
                if last is None:
                    raise KeyError(after)
                before = last.number
            query = f"{_SELECT} WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?"
            return [_batch(row) for row in connection.execute(query, (owner, before, limit))]

    def cancel(self, owner: str, batch_id: str) -> Batch | None:
        """Begin to end a batch. None if there is no such batch. Raises CannotCancelError if it is too late."""
        with self._database.writing() as connection:
            batch = _found(connection, owner, batch_id)
            if batch is None or batch.status == "cancelling":
                return batch
            if batch.status not in ("validating", "in_progress"):
                raise CannotCancelError(batch.status)
            connection.execute(
                "UPDATE batches SET status = 'cancelling', ending = 'cancelled', cancelling_at = ? WHERE number = ?",
                (int(self._now()), batch.number),
            )
            batch = _found(connection, owner, batch_id)
        assert batch is not None
        self._watcher(batch.number)
        return batch

    @property
    def keeps_used_files(self) -> Also:
        """For FileStore.delete: raises FileInUseError if a batch that has not ended reads the file."""

        def check(connection: sqlite3.Connection, file: StoredFile) -> None:
            query = f"SELECT id FROM batches WHERE owner = ? AND input_file = ? AND {_OPEN}"  # noqa: S608
            used = connection.execute(query, (file.owner, file.id)).fetchone()
            if used is not None:
                raise FileInUseError(f"The batch {used[0]!r} reads the file {file.id!r}. Cancel the batch first.")

        return check

    # -- for the runner ----------------------------------------------------------------------------------------------

    def unfinished(self) -> list[int]:
        """The numbers of all batches that have not ended, oldest first."""
        with self._database.reading() as connection:
            query = f"SELECT number FROM batches WHERE {_OPEN} ORDER BY number"  # noqa: S608
            return [number for (number,) in connection.execute(query)]

    def by_number(self, number: int) -> Batch:
        with self._database.reading() as connection:
            return _batch(connection.execute(f"{_SELECT} WHERE number = ?", (number,)).fetchone())

    def fail(self, number: int, errors: Sequence[InputError]) -> None:
        """End a batch whose input cannot be used. Does nothing if it was cancelled meanwhile."""
        listed = json.dumps([astuple(each) for each in errors])
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE batches SET status = 'failed', failed_at = ?, errors = ? "
                "WHERE number = ? AND status = 'validating'",
                (int(self._now()), listed, number),
            )

    def begin(
        self, number: int, lines: Iterable[Line], total: int, models: Sequence[str], known_models: Sequence[str]
    ) -> None:
        """The input is valid: its lines may run. Does nothing if the batch was cancelled meanwhile."""
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE batches SET status = 'in_progress', in_progress_at = ?, total = ?, models = ?, "
                "known_models = ? WHERE number = ? AND status = 'validating'",
                (int(self._now()), total, json.dumps(models), json.dumps(known_models), number),
            )
            if changed.rowcount:
                connection.executemany(
                    "INSERT INTO batch_lines (batch, line, custom_id, start, size, model_group, place) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        (number, each.line, each.custom_id, each.start, each.size, each.model_group, each.place)
                        for each in lines
                    ),
                )

    def pending(self, number: int, model_group: int, after: int, limit: int) -> list[Line]:
        """Lines of a group without an answer, in the order of execution, those after the place `after`."""
        query = (
            "SELECT line, custom_id, start, size, model_group, place FROM batch_lines AS lines "
            "WHERE batch = ? AND model_group = ? AND place > ? AND NOT EXISTS "
            "(SELECT 1 FROM batch_answers AS answers WHERE answers.batch = lines.batch AND answers.line = lines.line) "
            "ORDER BY place LIMIT ?"
        )
        with self._database.reading() as connection:
            return [Line(*row) for row in connection.execute(query, (number, model_group, after, limit))]

    def record(self, number: int, line: int, data: bytes, usage: Usage | None) -> bool:
        """Record the answer of a line. `usage`: None if the answer is an error.

        Returns False if the line has an answer already, or if the batch does not take any more. Then nothing changes.
        """
        with self._database.writing() as connection:
            added = connection.execute(
                "INSERT OR IGNORE INTO batch_answers (batch, line, is_error, data) SELECT number, ?, ?, ? FROM batches "
                "WHERE number = ? AND status IN ('in_progress', 'cancelling')",
                (line, usage is None, data, number),
            )
            if not added.rowcount:
                return False
            used = usage or Usage()
            connection.execute(
                "UPDATE batches SET completed = completed + ?, failed = failed + ?, "
                "input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?, "
                "output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ? WHERE number = ?",
                (usage is not None, usage is None, *astuple(used), number),
            )
        return True

    def finalize(self, number: int, ending: Ending) -> None:
        """No more lines run, and its files may be written. Does nothing if the batch was cancelled meanwhile."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE batches SET status = 'finalizing', ending = ?, finalizing_at = ? "
                "WHERE number = ? AND status IN ('validating', 'in_progress')",
                (ending, int(self._now()), number),
            )

    def answered(self, number: int, after: int, *, is_error: bool) -> list[Answered]:
        """Some lines for a file, in the order of the input, those after the line `after`. None if there are no more.

        Lines without an answer count as errors.
        """
        query = (
            "SELECT lines.line, custom_id, data FROM batch_lines AS lines "
            "LEFT JOIN batch_answers AS answers ON answers.batch = lines.batch AND answers.line = lines.line "
            "WHERE lines.batch = ? AND lines.line > ? AND coalesce(is_error, 1) = ? ORDER BY lines.line LIMIT ?"
        )
        found, num_bytes = [], 0
        with self._database.reading() as connection:
            for row in connection.execute(query, (number, after, is_error, _WRITTEN_LINES)):
                found.append(Answered(*row))
                num_bytes += len(found[-1].data or b"")
                if num_bytes > _WRITTEN_BYTES:
                    break
        return found

    def takes(self, number: int, kind: Literal["output", "error"]) -> Also:
        """For Upload.finish: the file becomes the batch's in the transaction that adds it."""

        def take(connection: sqlite3.Connection, file: StoredFile) -> None:
            query = f"UPDATE batches SET {kind}_file = ? WHERE number = ?"  # noqa: S608
            connection.execute(query, (file.id, number))

        return take

    def end(self, number: int) -> None:
        """Its files are written: give it its last status. Lines without an answer count as failed."""
        with self._database.writing() as connection:
            [ending] = connection.execute("SELECT ending FROM batches WHERE number = ?", (number,)).fetchone()
            query = (
                f"UPDATE batches SET status = ending, {ending}_at = ?, failed = total - completed "  # noqa: S608
                "WHERE number = ? AND status IN ('finalizing', 'cancelling')"
            )
            connection.execute(query, (int(self._now()), number))

    def forget_lines(self) -> bool:
        """Remove some lines and answers of batches that have ended. Returns whether there may be more."""
        ended = f"batch IN (SELECT number FROM batches WHERE status IN ({', '.join(map(repr, ENDED))}))"  # noqa: S608
        with self._database.writing() as connection:
            removed = 0
            for table in ("batch_lines", "batch_answers"):
                keys = f"SELECT batch, line FROM {table} WHERE {ended} LIMIT {_FORGOTTEN_AT_ONCE}"  # noqa: S608
                query = f"DELETE FROM {table} WHERE (batch, line) IN ({keys})"  # noqa: S608
                removed += connection.execute(query).rowcount
        return removed > 0


def _has_file(connection: sqlite3.Connection, owner: str, file_id: str) -> bool:
    query = "SELECT 1 FROM files WHERE owner = ? AND id = ?"
    return connection.execute(query, (owner, file_id)).fetchone() is not None


def _found(connection: sqlite3.Connection, owner: str, batch_id: str) -> Batch | None:
    row = connection.execute(f"{_SELECT} WHERE owner = ? AND id = ?", (owner, batch_id)).fetchone()
    return None if row is None else _batch(row)


def _batch(row: Sequence[Any]) -> Batch:
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    values |= {name: json.loads(values[name]) for name in _JSON}
    values["errors"] = [InputError(*each) for each in values["errors"]]
    values["usage"] = Usage(*(values.pop(name) for name in _USAGE))
    return Batch(**values)
