"""POST /v1/chat/completions: a request becomes tokens, and tokens become an answer or a stream of its pieces."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson
import trio

from api.detokenizer import Detokenizer
from api.engine import Generation
from api.errors import ApiError
from api.schemas import ChatRequest
from api.service import ModelService

PING_SECONDS: Final = 15.0
"""Silence after which a stream says that it is still there, so that proxies keep it open."""
DONE: Final = b"data: [DONE]\n\n"


class ChatCompletion:
    """One answer in the making."""

    def __init__(self, service: ModelService, request: ChatRequest, prompt: list[int]) -> None:
        """Raises ApiError 400 if the context cannot hold it."""
        self._service = service
        self._request = request
        self._num_prompt = len(prompt)
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        limit = service.token_limit(len(prompt), request.requested_tokens)
        self._generation = service.engine.generate(prompt, limit, request.sampling())
        self._detokenizer = Detokenizer(service.tokenizer.piece, request.stop or ())
        self._fingerprint = service.fingerprint()  # of the engine that answers, even if it is gone by the end
        self._cached_tokens = 0

    async def answer(self) -> dict[str, Any]:
        """The whole answer. Raises ApiError 500 if the engine fails."""
        texts = []
        with self._generation as generation:
            finish_reason = None
            while finish_reason is None:
                text, finish_reason = await self._next_text(generation)
                texts.append(text)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: the role, pieces of text as they come, why it ended, and [DONE].

        The request is submitted at the first turn, so that a client that leaves before it has cost nothing.
        """
        try:
            with self._generation as generation:
                yield self._chunk({"role": "assistant", "content": "", "refusal": None})
                finish_reason = None
                while finish_reason is None:
                    text = None
                    with trio.move_on_after(PING_SECONDS):
                        text, finish_reason = await self._next_text(generation)
                    if text is None:
                        yield b": ping\n\n"
                    elif text:
                        yield self._chunk({"content": text})
            end = self._chunk({}, finish_reason)
            if self._request.include_usage:
                end += _event(self._object("chat.completion.chunk", []) | {"usage": self._usage()})
            yield end + DONE
        except ApiError as error:
            yield _event(error.body())

    async def _next_text(self, generation: Generation) -> tuple[str, str | None]:
        """What there is to say, and why it was the last if it was."""
        output = await generation.receive()
        self._cached_tokens = max(self._cached_tokens, output.cached_tokens)
        text = self._detokenizer.push(output.tokens)
        if self._detokenizer.stopped:
            return text, "stop"
        if output.finish_reason is not None:
            text += self._detokenizer.finish()
        return text, output.finish_reason

    def _usage(self) -> dict[str, Any]:
        completion = self._detokenizer.num_tokens
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": completion,
            "total_tokens": self._num_prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
            "service_tier": "default",
            "system_fingerprint": self._fingerprint,
        }

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._object("chat.completion.chunk", [choice])
        return _event(chunk | {"usage": None} if self._request.include_usage else chunk)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
