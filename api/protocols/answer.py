"""Runs a request and renders its choices, as one object or as a stream of server-sent events."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Final

import orjson
import trio

from api.engine.deadline import NEVER, Deadline
from api.engine.generation import INVALID_GRAMMAR, Generation
from api.errors import ApiError
from api.serving.choice import Delta
from api.serving.observer import finish_of
from api.serving.service import ModelService, Prepared
from api.text.dialects import Reasoning
from scheduler.messages import Output

PING_SECONDS: Final = 15.0
"""Seconds without data after which a stream sends a ping, so that proxies keep it open."""


class Answer(ABC):
    """The answer to one request. Used once, with `whole` or with `stream`."""

    content_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    """Of a stream."""

    def __init__(self, service: ModelService, prepared: Prepared) -> None:
        """Raises ApiError 503 without an engine."""
        self._service = service
        self._prompts = prepared.prompts
        self._submits = prepared.submits
        self._choices = prepared.choices
        self._grammar_param = prepared.grammar_param
        self._place = prepared.place
        self._record = prepared.record
        self._fingerprint = service.fingerprint()  # read now: the engine may have ended when the answer is complete
        self._generation = service.engine.generate(prepared.submits, prepared.ticket)
        self._hides_reasoning = False
        """Whether the client gets no reasoning."""

    async def whole(self) -> dict[str, Any]:
        """Returns the whole answer. Raises ApiError 400 for an unsupported grammar, 500 if the engine fails."""
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        with self._generation as generation:
            self._note_submission()
            while not self._finished:
                for index, delta in await self._receive(generation):
                    deltas[index].append(delta)
        return self._whole(deltas)

    async def stream(self, deadline: Deadline = NEVER) -> AsyncGenerator[bytes]:
        """Server-sent events: the pieces of the choices when they are generated, and why the choices ended.

        Returns immediately, but with a grammar only once the engine has accepted it. Raises ApiError 400 for an
        unsupported grammar. The caller cancels this call at the deadline. After it, the stream ends with an error then.
        """
        self._generation.deadline = deadline
        events = self._events(deadline)
        if not self._has_grammar:
            return events  # the first iteration submits the request: a client that leaves earlier costs nothing
        return _resumed(await anext(events), events)

    async def _events(self, deadline: Deadline) -> AsyncGenerator[bytes]:
        accepted = not self._has_grammar
        try:
            with self._generation as generation:
                self._note_submission()
                deltas = [] if accepted else await self._receive(generation)
                accepted = True
                if data := self._beginning() + self._written(deltas):
                    yield data
                shown: int | None = None
                while not self._finished:
                    position = generation.position
                    if position is not None and position != shown:
                        shown = position
                        if data := self._queued(position):
                            yield data
                    until = min(trio.current_time() + PING_SECONDS, deadline.at)
                    with trio.CancelScope(deadline=until) as silence:
                        deltas = await self._receive(generation)
                    if silence.cancelled_caught:
                        if until == deadline.at:
                            raise deadline.error()
                        yield self._ping()
                    elif data := self._written(deltas):
                        yield data
        except ApiError as error:
            if not accepted:
                raise
            self._record.finish, self._record.error = finish_of(error.status), error.code or ""
            yield self._failure(error)

    def _note_submission(self) -> None:
        self._place.release()
        self._record.submitted = trio.current_time()

    def _written(self, deltas: list[tuple[int, Delta]]) -> bytes:
        data = b"".join(self._news(index, delta) for index, delta in deltas)
        return data + self._end() if self._finished else data

    @property
    def _has_grammar(self) -> bool:
        return any(submit.grammar for submit in self._submits)

    @property
    def _finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    async def _receive(self, generation: Generation) -> list[tuple[int, Delta]]:
        try:
            outputs = await generation.receive()
        except ApiError as error:
            if error.code == INVALID_GRAMMAR:
                error.param = self._grammar_param
            raise
        deltas = []
        now = trio.current_time()
        for index, output in outputs:
            choice = self._choices[index]
            num_before = choice.num_tokens
            deltas += [(index, self._shown(choice.push(step))) for step in self._steps(output)]
            self._record.received(index, output, choice.num_tokens - num_before, now)
            if choice.finish_reason is not None:
                generation.end(index)  # a stop string ended the choice; the engine does not detect that
        if self._finished:
            is_cut = any(choice.finish_reason == "length" for choice in self._choices)
            self._record.finish = "length" if is_cut else "stop"
        return deltas

    def _shown(self, delta: Delta) -> Delta:
        """The part of a delta that the client gets."""
        if self._hides_reasoning:
            delta.events = [event for event in delta.events if not isinstance(event, Reasoning)]
        return delta

    def _steps(self, output: Output) -> Sequence[Output]:
        """The parts of an output that a choice processes one by one. Overridden to match texts with their tokens."""
        return (output,)

    @abstractmethod
    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        """The whole object, from all deltas of each choice."""

    @abstractmethod
    def _beginning(self) -> bytes:
        """The events that a stream begins with."""

    @abstractmethod
    def _news(self, index: int, delta: Delta) -> bytes:
        """The events for a delta of a choice."""

    @abstractmethod
    def _end(self) -> bytes:
        """The events at the end of a stream, in the same write as the last delta."""

    @abstractmethod
    def _failure(self, error: ApiError) -> bytes:
        """The events that end a stream after an error."""

    def _ping(self) -> bytes:
        return b": ping\n\n"

    def _queued(self, position: int) -> bytes:
        """The comment about the place of a request that waits; empty if the stream's format has no comments."""
        return b": queued %d\n\n" % position


async def _resumed(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


def event(data: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event. `name`: its type, if it has one."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
