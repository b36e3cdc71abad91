"""One row of the table of operations."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel

from api.protocols.answer import Answer
from api.protocols.body import Download
from api.protocols.call import Call, EventStream, Reply
from api.protocols.fields import Query, Strict
from api.protocols.types import Error

Handler = Callable[
    [Call[Any]], Awaitable[Answer | Download | EventStream | Reply | dict[str, Any] | list[dict[str, Any]]]
]

GENERATES: Final = (400, 403, 404, 413, 429, 500, 503, 504)
"""The statuses of errors of operations that generate or embed."""
READS: Final = (400, 403, 404, 413, 503)
"""The statuses of errors of operations that need a model, but compute nothing with it."""


class Scope(Enum):
    """Who may call an operation."""

    PUBLIC = "anybody"
    """Needs no API key, even if other operations do."""
    METRICS = "users; anybody with `--metrics-public`"
    USER = "users"
    """Needs an API key if the server demands keys."""
    OWNER = "administrators"
    """For operations that change the server. Always needs an admin key, or the owner's secret."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A variable part of the URL's path."""

    description: str
    has_slashes: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One way to call the API."""

    name: str
    """Its name in metrics."""
    method: str
    path: str
    """The URL's path, with the names of parameters in braces."""
    summary: str
    handler: Handler
    answer: type[BaseModel] | None = None
    """The type of the answer with status 200. None for answers that are no JSON. OpenAPI leaves out those that are no
    events either.
    """
    request: type[Strict] | None = None
    """The type of the body."""
    form: type[BaseModel] | None = None
    """The type of a multipart form with a file. The handler reads it piece by piece."""
    is_download: bool = False
    """Whether the answer is a file of a client."""
    query: type[Query] | None = None
    """The type of the URL's query."""
    chunk: type[BaseModel] | None = None
    """The type of the data of a stream's events; None if the operation does not stream."""
    names_events: bool = False
    """Whether each event has its type as its name. Otherwise events have no names, and `[DONE]` ends a stream."""
    streams_lines: bool = False
    """Whether a stream is lines of JSON (NDJSON) instead of server-sent events."""
    is_endless: bool = False
    """Whether a stream goes on until one side leaves. Then events have neither names nor numbers, and none is `[DONE]`.
    """
    errors: tuple[int, ...] = ()
    """Statuses of errors, without the 405 for parameters with a reserved name (see `taken`)."""
    error: type[BaseModel] = Error
    unhealthy: int | None = None
    """Another status that has the same type of answer as 200."""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """By their names in the path."""
    scope: Scope = Scope.USER
    aliases: tuple[str, ...] = ()
    """Other servers' paths of the same operation."""

    @property
    def streams(self) -> bool:
        return self.chunk is not None

    @property
    def is_resumable(self) -> bool:
        """Whether a client can resume its streams: those of events, which have numbers."""
        return self.is_limited and self.streams and not self.streams_lines

    @property
    def short_path(self) -> str | None:
        """Its path without `/v1`, which other servers have too; None for operations of this server only."""
        return self.path.removeprefix("/v1") if self.path.startswith("/v1/") and self.scope is not Scope.OWNER else None

    @property
    def paths(self) -> list[str]:
        """All its paths."""
        return [path for path in (self.path, self.short_path, *self.aliases) if path]

    @property
    def is_limited(self) -> bool:
        """Whether it generates or embeds, so that it counts toward the limits of its tenant."""
        return 429 in self.errors

    @property
    def is_observed(self) -> bool:
        """Whether observers get its requests. Those of probes and scrapers would hide all others."""
        return self.scope in (Scope.USER, Scope.OWNER)

    @property
    def segments(self) -> list[str]:
        return self.path.split("/")


def taken(operation: Operation, operations: tuple[Operation, ...]) -> list[str]:
    """Values that the last parameter of a path cannot have, because they are part of another operation's path."""
    *before, last = operation.segments
    if not last.startswith("{"):
        return []
    others = [each.segments for each in operations if each.segments[:-1] == before]
    return sorted({names[-1] for names in others if not names[-1].startswith("{")})
