"""Counts usage in memory, and writes it to the database every few seconds."""

import logging
import threading
from collections.abc import Callable
from datetime import date, datetime
from typing import Final

import trio

from api.tenants import database
from api.tenants.errors import TenantsError
from api.tenants.tenant import OTHERS
from api.tenants.usage import UsageRow, Used, write

_log = logging.getLogger("cortex.api")

FLUSH_SECONDS: Final = 3.0
LAST_FLUSH_SECONDS: Final = 5.0
MAX_KEYLESS: Final = 1000
"""Tenants without keys that are counted one by one on a day. Clients name them, so there may be any number."""
MAX_MODEL_LENGTH: Final = 512


class UsageBuffer:
    """Adds up usage in memory. One task must run `run`, which writes it to the database in a thread."""

    def __init__(self, *, today: Callable[[], date] = lambda: datetime.now().astimezone().date()) -> None:
        self._today = today
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[str, str, str], Used] = {}
        """By day, tenant and model."""
        self._keyless: set[str] = set()
        self._keyless_day = ""
        self._fails = False

    def add(self, tenant: str, model: str, used: Used) -> None:
        """Count usage. Never blocks for long and writes nothing."""
        day = self._today().isoformat()
        key = day, self._counted(tenant, day), model[:MAX_MODEL_LENGTH]
        with self._lock:
            self._unwritten[key] = self._unwritten.get(key, Used()) + used

    def _counted(self, tenant: str, day: str) -> str:
        """The name that a tenant is counted under."""
        if ":" not in tenant:  # it has a key, so somebody has added it
            return tenant
        if day != self._keyless_day:
            self._keyless.clear()
            self._keyless_day = day
        if tenant not in self._keyless and len(self._keyless) >= MAX_KEYLESS:
            return OTHERS
        self._keyless.add(tenant)
        return tenant

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write every few seconds, and once more when cancelled."""
        task_status.started()
        try:
            while True:
                await trio.sleep(FLUSH_SECONDS)
                await trio.to_thread.run_sync(self.flush)
        finally:
            with trio.move_on_after(LAST_FLUSH_SECONDS, shield=True):
                await trio.to_thread.run_sync(self.flush, abandon_on_cancel=True)

    def flush(self) -> None:
        """Write what is not written yet. What cannot be written is kept for the next time. Logs the first failure."""
        with self._lock:
            rows, self._unwritten = self._unwritten, {}
        if not rows:
            return
        try:
            with database.database() as connection:
                write(connection, (UsageRow(*key, used) for key, used in rows.items()))
            self._fails = False
        except TenantsError as error:
            if not self._fails:
                _log.error("usage cannot be written, and is kept in memory: %s", error)
            self._fails = True
            with self._lock:
                for key, used in rows.items():
                    self._unwritten[key] = self._unwritten.get(key, Used()) + used
