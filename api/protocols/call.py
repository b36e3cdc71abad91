"""The input of an operation's handler, and one kind of its result."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from api.errors import ApiError
from api.flags import CacheScope
from api.protocols.body import IncomingBody
from api.protocols.resumable import ResumableStreams
from api.protocols.store import KeptResponses
from api.serving.fleet import Fleet
from api.serving.limits import Limiter
from api.serving.live import Hub
from api.serving.metrics import Metrics
from api.serving.observer import Observers, RequestRecord
from api.serving.salts import salt_of
from api.serving.service import ModelService, Use
from api.serving.spec import GenerationSpec
from api.serving.tickets import OpenTickets, Ticket
from api.storage.errors import NoStorageError
from api.storage.storage import Storage
from api.tenants.tenant import LOCAL, Tenant

RequestT = TypeVar("RequestT")

NO_STORAGE: Final = "This server keeps no files and no batches."


@dataclass(frozen=True, slots=True)
class Server:
    """The state that all operations of one server share."""

    fleet: Fleet
    started: float
    """Start time on the monotonic clock, in seconds."""
    live: Hub
    """All who watch the server."""
    model_flags: Mapping[str, object] = field(default_factory=dict)
    """Defaults for the flags of models that a request starts."""
    responses: KeptResponses = field(default_factory=KeptResponses)
    streams: ResumableStreams = field(default_factory=ResumableStreams)
    observers: Observers = field(default_factory=Observers)
    """They get each request."""
    metrics: Metrics = field(default_factory=Metrics)
    limiter: Limiter = field(default_factory=Limiter)
    """Knows what tenants have and use."""
    tickets: OpenTickets = field(default_factory=OpenTickets)
    cache_scope: CacheScope = "server"
    """Who shares prefixes with whom."""
    request_timeout: float = 0.0
    """Seconds for a request that sets none; 0 for no limit."""
    demands_keys: bool = False
    """Whether clients need API keys."""
    storage: Storage | str = NO_STORAGE
    """Files and batches; without them, the reason."""


@dataclass(frozen=True, slots=True)
class Call(Generic[RequestT]):
    """One request to one operation."""

    server: Server
    request: RequestT
    """The validated body or query; None if the operation reads neither."""
    request_id: str
    path: Mapping[str, str] = field(default_factory=dict)
    """The parameters in the URL's path."""
    tenant: Tenant = LOCAL
    """Who sent it."""
    is_owner: bool = False
    """Whether the client may manage the server."""
    record: RequestRecord = field(default_factory=RequestRecord)
    """Where the stations of the request are recorded."""
    ticket: Ticket = field(default_factory=Ticket)
    """Counts the request toward limits."""
    body: IncomingBody | None = None
    """The body of an upload."""

    @property
    def storage(self) -> Storage:
        """Files and batches. Raises NoStorageError if the server has none."""
        if isinstance(self.server.storage, str):
            raise NoStorageError(self.server.storage)
        return self.server.storage

    @property
    def keeper(self) -> str:
        """To whom kept responses and streams belong: the tenant. Without keys, a client may have several names: all
        share them.
        """
        return self.tenant.name if self.server.demands_keys else ""

    @property
    def sees_details(self) -> bool:
        """Whether the client may see the server's processes and counters."""
        return self.is_owner or not self.server.demands_keys

    async def service(self, name: str | None) -> ModelService:
        """As Fleet.service. Raises ApiError 403 if the tenant may not use the model."""
        self._check_allowed(name)
        return await self.server.fleet.service(name)

    async def accepting(self, name: str, use: Use = "generate") -> ModelService:
        """As Fleet.accepting. Raises ApiError 403 if the tenant may not use the model."""
        self._check_allowed(name)
        return await self.server.fleet.accepting(name, use)

    def _check_allowed(self, name: str | None) -> None:
        """Checked before the model is looked up, so that no model is loaded for a client who may not use it."""
        allowed, names = self.tenant.models, self.server.fleet.names_of(name)
        if allowed and names and not set(allowed) & set(names):
            listed = ", ".join(map(repr, allowed))
            message = f"This API key may not use the model {name or names[0]!r}. It may use {listed}."
            raise ApiError(403, message, param="model", code="model_not_allowed")

    def owned(self, spec: GenerationSpec) -> GenerationSpec:
        """The request in neutral form, with its tenant, record and ticket, and with the salt that separates it."""
        salt = salt_of(self.server.cache_scope, self.tenant.name, spec.cache_salt)
        return replace(spec, tenant=self.tenant, cache_salt=salt, record=self.record, ticket=self.ticket)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer other than JSON with status 200."""

    data: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer of server-sent events."""

    events: AsyncGenerator[bytes]
    stream_id: str | None = None
    """Under which it can be resumed; None if it cannot."""
