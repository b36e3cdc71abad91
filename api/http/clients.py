"""What a running server knows of its clients: their keys, and what each has used."""

import logging
from pathlib import Path

import trio

from api.flags import ServerSettings, is_loopback
from api.http.access import Access
from api.serving.usage import UsageObserver
from api.tenants.directory import Directory
from api.tenants.secret import make_secret
from api.tenants.usage_buffer import UsageBuffer

_log = logging.getLogger("cortex.api")


class Clients:
    """The clients of a server. One task must run `run`."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises TenantsError if the keys cannot be read, OSError if the owner's secret cannot be written."""
        self._settings = settings
        self._directory = Directory(Path(settings.keys_file).expanduser() if settings.keys_file else None)
        self._directory.load()
        self._usage = UsageBuffer()
        self.usage = UsageObserver(self._usage)
        """Counts requests."""
        self.access = Access(
            self._directory,
            make_secret(),
            demands_keys=settings.demands_keys,
            public_metrics=settings.metrics_public,
        )

    async def run(self) -> None:
        """Follow changes of keys and write usage, until cancelled."""
        self._log_access()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._directory.run)
            nursery.start_soon(self._usage.run)

    def _log_access(self) -> None:
        if not self._settings.demands_keys:
            reach = "of this machine" if is_loopback(self._settings.host) else "of all machines that can connect"
            _log.info("clients %s need no API key", reach)
        elif self._directory.is_empty:
            _log.warning("clients need API keys, and there are none yet: 'cortex keys add NAME' makes one")
        else:
            _log.info("clients need API keys")
