"""Why files and batches cannot be read or written."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator


class StorageError(Exception):
    """Files or batches cannot be read or written. The message is one line for the client and for the log."""


class StorageFullError(StorageError):
    """The disk has no room."""


class QuotaError(StorageError):
    """The owner, or all owners together, would have too much."""


class BusyError(StorageError):
    """Too many files are being written. Later there is room again."""


class NoStorageError(StorageError):
    """The server has no files and batches at all."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL = "The server's disk is full."


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Raises errors of SQLite and of the system as StorageError. `what` could not be used, such as "The file"."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise StorageFullError(FULL) from error
        raise StorageError(f"{what} cannot be used: {error}") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFullError(FULL) from error
        raise StorageError(f"{what} cannot be used: {error.strerror or error}") from error
