"""Finds the tenant of a key. Follows the changes that other processes make to the database and to the keys file."""

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import trio

from api.tenants import database, store
from api.tenants.errors import TenantsError
from api.tenants.keys import hash_of, matches
from api.tenants.keys_file import read_keys_file
from api.tenants.store import StoredKey, StoredTenant
from api.tenants.tenant import Tenant

_log = logging.getLogger("cortex.api")

REFRESH_SECONDS: Final = 1.0
"""How long a change of keys may take until the server follows it."""
MIN_SECONDS: Final = 0.1
"""Between two refreshes, however many unknown keys are sent."""
_INDEX_BYTES: Final = 8
"""Bytes of a hash by which keys are looked up, before the whole hash is compared."""

FileStamp = tuple[int, int, int]


class Refusal(Enum):
    """Why a key is not accepted."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class _Known:
    stored: StoredTenant
    key: StoredKey

    def accepted(self, now: float) -> Tenant | Refusal:
        if self.key.revoked_at is not None:
            return Refusal.REVOKED
        times = self.key.expires_at, self.stored.expires_at
        return Refusal.EXPIRED if any(at is not None and at <= now for at in times) else self.stored.tenant


class Directory:
    """The tenants of a server by their keys. One task must run `run`, which reads changes."""

    def __init__(self, keys_file: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns seconds since the epoch."""
        self._keys_file = keys_file
        self._clock = clock
        self._known: dict[bytes, list[_Known]] = {}
        """By the first bytes of the keys' hashes."""
        self._in_database: list[StoredTenant] = []
        self._in_file: list[StoredTenant] = []
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        """Of the database that the connection has opened."""
        self._version: int | None = None
        """SQLite's number for the state that was read. It changes when others write."""
        self._file_stamp: FileStamp | None = None
        self._failures: list[str] = []
        self._refreshing = trio.Lock()
        self._begun = -math.inf
        """When the last refresh began, on trio's clock."""

    def load(self) -> None:
        """Read everything. Raises TenantsError if the database or the keys file cannot be used."""
        self._read_database()
        self._read_file()
        self._index()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow changes until cancelled. Reads in a thread. A failure keeps what was read before, and is logged."""
        task_status.started()
        try:
            while True:
                await trio.sleep(REFRESH_SECONDS)
                await self._refreshed()
        finally:
            self.close()

    async def _refreshed(self) -> None:
        """Wait for a refresh that begins after this call. Calls at the same time share one."""
        called = trio.current_time()
        async with self._refreshing:
            if self._begun < called:
                await trio.sleep_until(self._begun + MIN_SECONDS)
                self._begun = trio.current_time()
                await trio.to_thread.run_sync(self.refresh)

    def refresh(self) -> None:
        """Read what has changed. A failure keeps what was read before, and is logged once."""
        failures, has_changed = [], False
        for read in (self._read_database, self._read_file):
            try:
                has_changed |= read()
            except TenantsError as error:
                failures.append(f"{error}; the keys that were read before stay valid")
        if has_changed:
            self._index()
        for failure in failures:
            if failure not in self._failures:
                _log.error("%s", failure)
        self._failures = failures

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, key: str) -> Tenant | Refusal:
        """The tenant of a key, or why the key is not accepted."""
        hashed = hash_of(key)
        for known in self._known.get(hashed[:_INDEX_BYTES], ()):
            if matches(known.key.hash, hashed):
                return known.accepted(self._clock())
        return Refusal.UNKNOWN

    async def recognize(self, key: str) -> Tenant | Refusal:
        """As `find`, but looks for a key that was added just now before it refuses an unknown one."""
        found = self.find(key)
        if found is Refusal.UNKNOWN:
            await self._refreshed()
            found = self.find(key)
        return found

    def named(self, name: str) -> Tenant | None:
        """The tenant with this name; None if it has no valid key."""
        now = self._clock()
        known = [each for group in self._known.values() for each in group if each.stored.tenant.name == name]
        return next((found for each in known if isinstance(found := each.accepted(now), Tenant)), None)

    @property
    def is_empty(self) -> bool:
        """Whether nobody has a key."""
        return not self._known

    def _read_database(self) -> bool:
        """Read the tenants in the database, if it has changed. Returns whether it has. Makes no database."""
        file = database.path()
        inode = _inode(file)
        if inode is None:
            had_some = bool(self._in_database)
            self.close()
            self._in_database = []
            return had_some
        if inode != self._inode:  # another file has its place
            self.close()
        try:
            return self._read_from(self._connected(inode), file)
        except TenantsError:
            self.close()
            raise

    def _connected(self, inode: int) -> sqlite3.Connection:
        if self._connection is None:
            self._connection, self._inode, self._version = database.connect(), inode, None
        return self._connection

    def _read_from(self, connection: sqlite3.Connection, file: Path) -> bool:
        with database.errors_of(file):
            version = int(connection.execute("PRAGMA data_version").fetchone()[0])
            if version == self._version:
                return False
            self._in_database = store.every(connection)
            self._version = version
        return True

    def _read_file(self) -> bool:
        """Read the keys file, if it has changed. Returns whether it has."""
        if self._keys_file is None:
            return False
        stamp = _stamp(self._keys_file)
        if stamp is not None and stamp == self._file_stamp:
            return False
        self._in_file = read_keys_file(self._keys_file)
        self._file_stamp = stamp
        return True

    def _index(self) -> None:
        """A name in the keys file replaces the same name in the database."""
        in_file = {each.tenant.name for each in self._in_file}
        tenants = [*self._in_file, *(each for each in self._in_database if each.tenant.name not in in_file)]
        known: dict[bytes, list[_Known]] = {}
        for each in tenants:
            for key in each.keys:
                known.setdefault(key.hash[:_INDEX_BYTES], []).append(_Known(each, key))
        self._known = known


def _inode(file: Path) -> int | None:
    stamp = _stamp(file)
    return stamp[0] if stamp else None


def _stamp(file: Path) -> FileStamp | None:
    """Changes with the file; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
