"""One row of the table of operations."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel

from api.protocols.answer import Answer
from api.protocols.call import Call, Reply
from api.protocols.fields import Query, Strict
from api.protocols.types import Error

Handler = Callable[[Call[Any]], Awaitable[Answer | Reply | dict[str, Any]]]


class Scope(Enum):
    """Who may call an operation."""

    PUBLIC = "anybody"
    """Needs no key, even where others do."""
    USER = "users"
    OWNER = "the server's own machine"
    """Changes the server."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the URL's path that the client chooses."""

    description: str
    has_slashes: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One way to call the API."""

    name: str
    """In metrics."""
    method: str
    path: str
    """With the names of its parameters in braces."""
    summary: str
    handler: Handler
    answer: type[BaseModel] | None = None
    """Of status 200; None for descriptions of the API, which do not describe themselves."""
    request: type[Strict] | None = None
    """The body."""
    query: type[Query] | None = None
    """In the URL, behind the path."""
    chunk: type[BaseModel] | None = None
    """What the events of a stream hold, if it can stream."""
    names_events: bool = False
    """Whether each event has its type as its name, and the last one says that it is the last; else `[DONE]` does."""
    errors: tuple[int, ...] = ()
    """Statuses of errors, without the 405 that a parameter may lead to."""
    error: type[BaseModel] = Error
    unhealthy: int | None = None
    """A status with the same answer as 200."""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """By their names in the path."""
    scope: Scope = Scope.USER

    @property
    def streams(self) -> bool:
        return self.chunk is not None

    @property
    def segments(self) -> list[str]:
        return self.path.split("/")


def taken(operation: Operation, operations: tuple[Operation, ...]) -> list[str]:
    """What the last part of the operation's path cannot be, as it is part of another operation's path."""
    *before, last = operation.segments
    if not last.startswith("{"):
        return []
    others = [each.segments for each in operations if each.segments[:-1] == before]
    return sorted({names[-1] for names in others if not names[-1].startswith("{")})
