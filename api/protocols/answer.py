"""A response in the making: the choices of a request, whole or as a stream of server-sent events."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import orjson
import trio

from api.engine.generation import INVALID_GRAMMAR, Generation
from api.errors import ApiError
from api.serving.choice import Delta
from api.serving.service import ModelService, Prepared
from scheduler.messages import Output

PING_SECONDS: Final = 15.0
"""Silence after which a stream says that it is still there, so that proxies keep it open."""


class Answer(ABC):
    """What an endpoint makes of the sequences that it asked for. Used once, by `whole` or by `stream`."""

    def __init__(self, service: ModelService, prepared: Prepared) -> None:
        """Raises ApiError 503 without an engine."""
        self._service = service
        self._prompts = prepared.prompts
        self._submits = prepared.submits
        self._choices = prepared.choices
        self._grammar_param = prepared.grammar_param
        self._fingerprint = service.fingerprint()  # of the engine that answers, even if it is gone by the end
        self._generation = service.engine.generate(prepared.submits)

    async def whole(self) -> dict[str, Any]:
        """The whole answer. Raises ApiError 400 for a grammar that cannot be served, 500 if the engine fails."""
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        with self._generation as generation:
            while not self._finished:
                for index, delta in await self._receive(generation):
                    deltas[index].append(delta)
        return self._whole(deltas)

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: pieces of the choices as they come, and why they ended.

        Returns once the request is known to be served: at once, unless it has a grammar. Raises ApiError 400 for one
        that cannot be served.
        """
        events = self._events()
        if not self._has_grammar:
            return events  # submitted at the first turn, so that a client that leaves before it has cost nothing
        return _resumed(await anext(events), events)

    async def _events(self) -> AsyncGenerator[bytes]:
        promised = not self._has_grammar
        try:
            with self._generation as generation:
                news = [] if promised else await self._receive(generation)
                promised = True
                if data := self._beginning() + self._written(news):
                    yield data
                while not self._finished:
                    with trio.move_on_after(PING_SECONDS) as silence:
                        news = await self._receive(generation)
                    if silence.cancelled_caught:
                        yield self._ping()
                    elif data := self._written(news):
                        yield data
        except ApiError as error:
            if not promised:
                raise
            yield self._failure(error)

    def _written(self, news: list[tuple[int, Delta]]) -> bytes:
        data = b"".join(self._news(index, delta) for index, delta in news)
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
        for index, output in outputs:
            choice = self._choices[index]
            deltas += [(index, choice.push(step)) for step in self._steps(output)]
            if choice.finish_reason is not None:
                generation.end(index)  # a stop string, which only we know of
        return deltas

    def _steps(self, output: Output) -> Sequence[Output]:
        """What a choice takes in at once, for those who must know which token said what."""
        return (output,)

    @abstractmethod
    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        """The whole object, from all that each choice has grown by."""

    @abstractmethod
    def _beginning(self) -> bytes:
        """The events that a stream begins with."""

    @abstractmethod
    def _news(self, index: int, delta: Delta) -> bytes:
        """The events for what a choice has grown by."""

    @abstractmethod
    def _end(self) -> bytes:
        """The events behind the last news, in the same write."""

    @abstractmethod
    def _failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which the engine broke off."""

    def _ping(self) -> bytes:
        return b": ping\n\n"


async def _resumed(first: bytes, events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


def event(data: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event, of a type if it has a name."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
