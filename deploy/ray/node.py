"""A replica: one Cortex node, and the way of requests to it. It needs no Ray."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from deploy.ray.headers import WRITTEN_BY_SERVE, Headers, end_to_end
from deploy.ray.prefixes import Prefix
from deploy.ray.process import NodeProcess, is_ready
from deploy.ray.settings import Settings

RECOVERY_SECONDS: Final = 30.0
"""How long a node may be unhealthy. An engine that crashed is back after seconds, and its answers go on."""
CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way to a node."""

    method: str
    target: str
    """Path and query, as the client wrote them."""
    headers: Headers
    body: bytes
    prefix: Prefix = field(default_factory=Prefix)


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: Headers


Piece = Head | bytes | None
"""Of an answer: None as soon as a node has the request, then the head, then the body as it comes."""


class NodeGoneError(Exception):
    """The node cannot be reached, or broke its connection."""


class NodeUnhealthyError(Exception):
    """The node has not been healthy for RECOVERY_SECONDS."""


class Forwarder:
    """Sends requests to the server at a Unix socket."""

    def __init__(self, socket: Path) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)
        # The node has time limits of its own, and an answer may take as long as it needs.
        self._http = httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))

    async def forward(self, call: Call) -> AsyncIterator[Piece]:
        """Closing the iterator cancels the request. Raises NodeGoneError."""
        yield None
        # Not by AsyncClient.request, which adds headers of its own.
        request = httpx.Request(
            call.method, f"http://localhost{call.target}", headers=list(call.headers), content=call.body or None
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                yield Head(response.status_code, end_to_end(response.headers.raw, WRITTEN_BY_SERVE))
                async for piece in response.aiter_raw():
                    yield piece
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise NodeGoneError(f"{type(error).__name__}: {error}") from None


class Node:
    """The class of the deployment. If its node dies, the replica ends at once, so that Serve replaces it."""

    def __init__(self, settings: Settings) -> None:
        """Returns when the node is ready. Raises NodeStartError."""
        self._process = NodeProcess(
            settings.model,
            settings.homes_folder,
            arguments=settings.node_arguments,
            grace_seconds=settings.grace_seconds,
            on_death=lambda: os._exit(1),
        )
        self._process.start(settings.ready_seconds)
        self._forwarder: Forwarder | None = None
        self._health = Patience(RECOVERY_SECONDS, time.monotonic)

    async def forward(self, call: Call) -> AsyncIterator[Piece]:
        async for piece in self._to_node().forward(call):
            yield piece

    async def check_health(self) -> None:
        """Serve calls this. Raises NodeUnhealthyError, and Serve then replaces the replica."""
        if self._health.is_exhausted(healthy=await asyncio.to_thread(is_ready, self._process.socket)):
            raise NodeUnhealthyError(f"GET /health has failed for {RECOVERY_SECONDS:.0f} s")

    def __del__(self) -> None:
        """Serve calls this when the replica has drained."""
        if hasattr(self, "_process"):
            self._process.stop()

    def _to_node(self) -> Forwarder:
        # Made by the first call, because it belongs to the event loop of the calls.
        if self._forwarder is None:
            self._forwarder = Forwarder(self._process.socket)
        return self._forwarder


class Patience:
    """Says when something has been unhealthy for too long."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: float | None = None

    def is_exhausted(self, *, healthy: bool) -> bool:
        if healthy:
            self._since = None
            return False
        if self._since is None:
            self._since = self._clock()
        return self._clock() - self._since >= self._seconds
