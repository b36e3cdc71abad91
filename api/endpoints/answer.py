"""A response in the making: the choices of a request, whole or as a stream of server-sent events."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar

import orjson
import trio

from api.choice import Choice, Delta
from api.engine import INVALID_GRAMMAR, Draft, Generation
from api.errors import ApiError
from api.schemas.common import GenerationRequest
from api.service import ModelService

PING_SECONDS: Final = 15.0
"""Silence after which a stream says that it is still there, so that proxies keep it open."""
DONE: Final = b"data: [DONE]\n\n"

RequestT = TypeVar("RequestT", bound=GenerationRequest)


class Answer(ABC, Generic[RequestT]):
    """What an endpoint makes of the sequences that it asked for. Used once, by `whole` or by `stream`."""

    kind: str
    """The name of the whole object."""
    chunk_kind: str
    """And of a stream's chunk."""

    def __init__(
        self,
        service: ModelService,
        request: RequestT,
        response_id: str,
        drafts: Sequence[Draft],
        choices: Sequence[Choice],
        grammar_param: str | None = None,
        num_prompts: int = 1,
    ) -> None:
        """The drafts are of `num_prompts` prompts, as many in a row of each. Raises ApiError 503 without an engine.

        `grammar_param`: the field of the request that the drafts' grammar comes from.
        """
        self._service = service
        self._request = request
        self._id = response_id
        self._created = int(time.time())
        self._drafts = drafts
        self._choices = choices
        self._grammar_param = grammar_param
        self._per_prompt = len(choices) // num_prompts
        self._fingerprint = service.fingerprint()  # of the engine that answers, even if it is gone by the end
        self._generation = service.engine.generate(drafts)

    async def whole(self) -> dict[str, Any]:
        """The whole answer. Raises ApiError 400 for a grammar that cannot be served, 500 if the engine fails."""
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        with self._generation as generation:
            while not self._finished:
                for index, delta in await self._receive(generation):
                    deltas[index].append(delta)
        return self._object(self.kind, self._whole_choices(deltas)) | {"usage": self._usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: pieces of the choices as they come, why they ended, and [DONE].

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
                if chunks := self._beginning() + self._chunks(news):
                    yield chunks + self._end()
                while not self._finished:
                    with trio.move_on_after(PING_SECONDS) as silence:
                        news = await self._receive(generation)
                    if silence.cancelled_caught:
                        yield b": ping\n\n"
                    elif chunks := self._chunks(news) + self._end():
                        yield chunks
        except ApiError as error:
            if not promised:
                raise
            yield _event(error.body())

    def _beginning(self) -> bytes:
        return b"".join(self._chunk(index, choice) for index in range(len(self._choices)) for choice in self._begin())

    def _end(self) -> bytes:
        """What follows the last chunk, in the same write."""
        if not self._finished:
            return b""
        if not self._request.include_usage:
            return DONE
        return _event(self._object(self.chunk_kind, []) | {"usage": self._usage()}) + DONE

    @property
    def _has_grammar(self) -> bool:
        return any(draft.grammar for draft in self._drafts)

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
            deltas.append((index, choice.push(output)))
            if choice.finish_reason is not None:
                generation.end(index)  # a stop string, which only we know of
        return deltas

    def _usage(self) -> dict[str, Any]:
        firsts = range(0, len(self._choices), self._per_prompt)
        prompt = sum(len(self._drafts[first].tokens) for first in firsts)
        completion = sum(self._num_tokens(choice) for choice in self._choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(self._choices[first].cached_tokens for first in firsts),
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in self._choices),
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def _num_tokens(self, choice: Choice) -> int:
        return choice.num_tokens

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
        }

    def _chunks(self, news: list[tuple[int, Delta]]) -> bytes:
        return b"".join(self._chunk(index, choice) for index, delta in news for choice in self._pieces(index, delta))

    def _chunk(self, index: int, choice: dict[str, Any]) -> bytes:
        chunk = self._object(self.chunk_kind, [{"index": index, **choice}])
        return _event(chunk | {"usage": None} if self._request.include_usage else chunk)

    @abstractmethod
    def _whole_choices(self, deltas: list[list[Delta]]) -> list[dict[str, Any]]:
        """The choices of the whole object, from all that each has grown by."""

    @abstractmethod
    def _begin(self) -> list[dict[str, Any]]:
        """What a stream says first of every choice."""

    @abstractmethod
    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a stream for what a choice has grown by."""


async def _resumed(first: bytes, events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
