"""What is asked of a server and what was seen of the answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

Message = dict[str, str]


class BenchError(Exception):
    """A mistake in the settings, or a server that cannot be measured at all: one line for the user."""


@dataclass(frozen=True, slots=True)
class Ask:
    messages: tuple[Message, ...]
    max_tokens: int
    role: str = ""  # what the request is in its workload: "stream", "long", "alone", ...
    fields: Mapping[str, Any] = field(default_factory=dict)  # what else the request says


@dataclass(frozen=True, slots=True)
class Record:
    """What was seen of one request. Times are `time.perf_counter()` seconds; None means not reported."""

    role: str
    start: float
    chunks: tuple[float, ...]  # arrival of every chunk with content; a chunk is not a token
    end: float
    prompt_tokens: int | None
    completion_tokens: int
    cached_tokens: int | None
    tokens_from_usage: bool  # else completion_tokens is the number of chunks
    finish_reason: str | None
    error: str | None
    aborted: bool  # closed by the workload itself, which is no error
    text: str


class Chat(Protocol):
    """Sends one request. `abort` closes it when cancelled; `watch` hears the number of chunks so far."""

    async def __call__(
        self, ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record: ...
