"""Requests of the load generator, and records of their answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

Message = dict[str, str]


class BenchError(Exception):
    """A wrong setting, or a server that cannot be measured. The message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Ask:
    messages: tuple[Message, ...]
    max_tokens: int
    role: str = ""  # the request's role in its workload: "stream", "long", "alone", ...
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request
    tenant: str = ""  # who asks; see Target.identify
    prompts: tuple[str, ...] = ()  # a text completion of all of these instead of a chat


@dataclass(frozen=True, slots=True)
class Record:
    """Measurements of one request. Times are `time.perf_counter()` seconds; None means not reported."""

    role: str
    start: float
    chunks: tuple[float, ...]  # arrival of every chunk with content (not always one token)
    end: float
    prompt_tokens: int | None
    completion_tokens: int
    cached_tokens: int | None
    tokens_from_usage: bool  # if False, completion_tokens is the number of chunks
    finish_reason: str | None
    error: str | None
    aborted: bool  # closed by the workload, which is not an error
    text: str
    accepted_drafts: int = 0  # drafted tokens that are part of the answer, if the server reports them
    rejected_drafts: int = 0


class Chat(Protocol):
    """Sends one request. Cancelling `abort` closes it. `watch` is called with the number of chunks so far."""

    async def __call__(
        self, ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record: ...
