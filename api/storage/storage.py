"""Everything that is stored in one folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from api.storage.database import Database
from api.storage.files import FileStore
from api.storage.quota import Quota


class Storage:
    """Files and batches of one folder. Only one process may have it open: the server that holds the folder's lock."""

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        """Raises StorageError."""
        self.database = Database(folder)
        try:
            self.files = FileStore(folder, self.database, quota=quota)
        except BaseException:
            self.database.close()
            raise

    def close(self) -> None:
        self.database.close()


@contextlib.contextmanager
def open_storage(folder: Path, quota: Quota | None = None) -> Iterator[Storage]:
    """Raises StorageError with one line if it cannot be used."""
    storage = Storage(folder, quota)
    try:
        yield storage
    finally:
        storage.close()
