"""Everything that is stored in one folder."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import trio

from api.storage.batches import BatchStore
from api.storage.database import Database
from api.storage.errors import StorageError
from api.storage.files import FileStore
from api.storage.quota import Quota

_log = logging.getLogger("cortex.api")

MAX_THREADS: Final = 4
"""Threads that wait for the disk at once. The rest of the server has others."""
EXPIRY_SECONDS: Final = 60.0
"""How often expired files are removed."""

P = ParamSpec("P")
T = TypeVar("T")


class Storage:
    """Files and batches of one folder. Only one process may have it open: the server that holds the folder's lock."""

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        """Raises StorageError."""
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self.database = Database(folder)
        try:
            self.files = FileStore(folder, self.database, quota=quota)
            self.batches = BatchStore(self.database)
        except BaseException:
            self.database.close()
            raise

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that waits for the disk, from a thread. It is not cancelled once it runs."""
        return await trio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limiter)

    async def run(self) -> None:
        """Remove expired files until cancelled."""
        while True:
            try:
                await self.call(self.files.remove_expired)
            except StorageError as error:
                _log.error("expired files cannot be removed: %s", error)
            await trio.sleep(EXPIRY_SECONDS)

    def close(self) -> None:
        self.database.close()
