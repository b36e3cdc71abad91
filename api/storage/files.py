"""Files of clients: their bytes in a folder, their names and owners in the database.

A file is complete or does not exist, whenever the process ends: its bytes are on the disk before its row, and its row
goes before its bytes. What has no row is removed at the next start.
"""

import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from api.storage.database import Database
from api.storage.errors import FULL, StorageFullError, storage_errors
from api.storage.quota import Quota, Usage

FOLDER: Final = "files"
SPARE_BYTES: Final = 256 * 1024 * 1024
"""Bytes of the disk that uploads leave free, so that a full disk is the problem of an uploader and of nobody else."""
_UNFINISHED: Final = ".part"
_COLUMNS: Final = "id, owner, filename, purpose, num_bytes, created_at, expires_at"

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A complete file."""

    id: str
    owner: str
    filename: str
    """As the client wrote it. It is never part of a path."""
    purpose: str
    num_bytes: int
    created_at: int
    """Seconds since the epoch."""
    expires_at: int | None = None


Also = Callable[[sqlite3.Connection, StoredFile], None]
"""What else changes in the transaction that adds or deletes a file."""


class FileStore:
    """The files of a server, by owner and id. Nobody finds the files of others.

    All methods block for as long as the disk takes: call them in threads. All threads may call them at once. All raise
    StorageError if the disk or the database fails.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        *,
        quota: Quota | None = None,
        now: Callable[[], float] = time.time,
        spare_bytes: int = SPARE_BYTES,
    ) -> None:
        """Makes the folder, and removes what earlier processes left unfinished. Raises StorageError."""
        self.folder = folder / FOLDER
        self._database = database
        self._now = now
        self._spare_bytes = spare_bytes
        with storage_errors(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        with database.reading() as connection:
            known = {row[0] for row in connection.execute("SELECT id FROM files")}
            stored = connection.execute("SELECT owner, count(*), sum(num_bytes) FROM files GROUP BY owner").fetchall()
        self.usage = Usage(quota or Quota(), stored)
        with storage_errors(str(self.folder)):
            for entry in self.folder.iterdir():
                if entry.name not in known and entry.is_file():
                    entry.unlink()

    def begin(
        self, owner: str, filename: str, purpose: str, expires_after: int | None = None, *, is_bounded: bool = True
    ) -> "Upload":
        """A file to write. `expires_after`: seconds from its creation.

        `is_bounded`: whether it is refused if it is more than the quota. It counts in any case. Raises QuotaError if
        there are too many files, BusyError if too many are being written.
        """
        self.usage.begin(owner, is_bounded=is_bounded)
        try:
            return Upload(self, owner, filename, purpose, expires_after, is_bounded=is_bounded)
        except BaseException:
            self.usage.end(owner, is_bounded=is_bounded)
            self.usage.remove(owner, 0)
            raise

    def get(self, owner: str, file_id: str) -> StoredFile | None:
        """None if there is no such file, or not any more."""
        with self._database.reading() as connection:
            found = _find(connection, owner, file_id)
        if found is not None and self._has_expired(found):
            self.delete(owner, file_id)
            return None
        return found

    def list(
        self,
        owner: str,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
    ) -> list[StoredFile]:
        """At most `limit` files by their time of creation, those after the file with the id `after`.

        Raises KeyError if there is no file `after`.
        """
        conditions = ["owner = ?", "(expires_at IS NULL OR expires_at > ?)"]
        values: list[str | int] = [owner, int(self._now())]
        if purpose is not None:
            conditions.append("purpose = ?")
            values.append(purpose)
        with self._database.reading() as connection:
            if after is not None:
                row = connection.execute("SELECT number FROM files WHERE owner = ? AND id = ?", (owner, after))
                if (number := row.fetchone()) is None:
                    raise KeyError(after)
                conditions.append("number > ?" if order == "asc" else "number < ?")
                values.append(number[0])
            where, direction = " AND ".join(conditions), "ASC" if order == "asc" else "DESC"
            query = f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY number {direction} LIMIT ?"  # noqa: S608
            return [StoredFile(*row) for row in connection.execute(query, (*values, limit))]

    def delete(self, owner: str, file_id: str, also: Also | None = None) -> bool:
        """Whether there was such a file. A reader that has opened it can read it to its end.

        `also` runs in the same transaction; its exception keeps the file.
        """
        with self._database.writing() as connection:
            found = _find(connection, owner, file_id)
            if found is None:
                return False
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
            if also is not None:
                also(connection, found)
        self.usage.remove(owner, found.num_bytes)
        with suppress(OSError):  # the next start tries again
            self.path(found).unlink()
        return not self._has_expired(found)

    def path(self, file: StoredFile) -> Path:
        """Where its bytes are."""
        return self.folder / file.id

    def open(self, file: StoredFile) -> IO[bytes]:
        """Its bytes. Raises StorageError if they cannot be read."""
        with storage_errors(f"The file {file.id!r}"):
            return self.path(file).open("rb")

    def remove_expired(self) -> int:
        """Remove the files whose time is over, and return how many there were."""
        query = "SELECT owner, id FROM files WHERE expires_at <= ?"
        with self._database.reading() as connection:
            expired = connection.execute(query, (int(self._now()),)).fetchall()
        for owner, file_id in expired:
            self.delete(owner, file_id)
        return len(expired)

    def _has_expired(self, file: StoredFile) -> bool:
        return file.expires_at is not None and file.expires_at <= self._now()

    # -- for uploads

    def take(self, owner: str, num_bytes: int, *, is_bounded: bool) -> None:
        """Count bytes that are about to be written. Raises QuotaError or StorageFullError."""
        with storage_errors("The server's folder of files"):
            if shutil.disk_usage(self.folder).free - num_bytes < self._spare_bytes:
                raise StorageFullError(FULL)
        self.usage.grow(owner, num_bytes, is_bounded=is_bounded)

    def add(
        self,
        file_id: str,
        owner: str,
        filename: str,
        purpose: str,
        num_bytes: int,
        expires_after: int | None,
        also: Also | None,
    ) -> StoredFile:
        """Record a file whose bytes are at their place."""
        now = int(self._now())
        expires_at = None if expires_after is None else now + expires_after
        file = StoredFile(file_id, owner, filename, purpose, num_bytes, now, expires_at)
        query = f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
        with self._database.writing() as connection:
            connection.execute(query, (file_id, owner, filename, purpose, num_bytes, now, expires_at))
            if also is not None:
                also(connection, file)
        return file


class Upload:
    """A file that is being written. It must be finished or aborted. One thread at a time may use it."""

    def __init__(
        self,
        store: FileStore,
        owner: str,
        filename: str,
        purpose: str,
        expires_after: int | None,
        *,
        is_bounded: bool,
    ) -> None:
        """Use FileStore.begin."""
        self.id = f"file-{secrets.token_hex(16)}"
        self.num_bytes = 0
        self.purpose, self.expires_after = purpose, expires_after  # a client may send them after the file
        self._store, self._owner, self._filename = store, owner, filename
        self._is_bounded = is_bounded
        self._is_over = False
        self._place = store.folder / self.id
        self._draft = store.folder / f"{self.id}{_UNFINISHED}"
        with storage_errors("The server's folder of files"):
            descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append. Raises QuotaError, or StorageFullError if the disk would have too little room. Then abort it."""
        self._store.take(self._owner, len(data), is_bounded=self._is_bounded)
        self.num_bytes += len(data)
        with storage_errors("The server's folder of files"):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self, also: Also | None = None) -> StoredFile:
        """The file, which survives the end of the process and of the machine. If this fails, the upload is aborted.

        `also` runs in the transaction that adds the file; with its exception there is no file.
        """
        try:
            with storage_errors("The server's folder of files"):
                os.fsync(self._file.fileno())
                self._file.close()
                self._draft.rename(self._place)
                _sync_folder(self._store.folder)
            file = self._store.add(
                self.id, self._owner, self._filename, self.purpose, self.num_bytes, self.expires_after, also
            )
        except BaseException:
            self.abort()
            raise
        self._is_over = True
        self._store.usage.end(self._owner, is_bounded=self._is_bounded)
        return file

    def abort(self) -> None:
        """Remove what was written. Does nothing after the end of the upload."""
        if self._is_over:
            return
        self._is_over = True
        self._store.usage.end(self._owner, is_bounded=self._is_bounded)
        self._store.usage.remove(self._owner, self.num_bytes)
        for close in (self._file.close, self._draft.unlink, self._place.unlink):
            with suppress(OSError):
                close()


def _find(connection: sqlite3.Connection, owner: str, file_id: str) -> StoredFile | None:
    query = f"SELECT {_COLUMNS} FROM files WHERE owner = ? AND id = ?"  # noqa: S608
    row = connection.execute(query, (owner, file_id)).fetchone()
    return None if row is None else StoredFile(*row)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive the end of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
