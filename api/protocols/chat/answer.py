"""POST /v1/chat/completions: renders chat completions, whole or as a stream of chunks."""

import uuid
from typing import Any, Self

from api.protocols.call import Call
from api.protocols.chat.conversation import as_spec
from api.protocols.chat.request import ChatRequest
from api.protocols.chunks import ChunkedAnswer
from api.protocols.logprobs import chat_logprobs
from api.serving.choice import Delta
from api.serving.service import ModelService
from api.text.dialects import CallArguments, CallBegin, Content, Event, Reasoning


class ChatCompletion(ChunkedAnswer[ChatRequest]):
    """The answers to one conversation."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    @classmethod
    async def create(cls, service: ModelService, request: ChatRequest) -> Self:
        """Raises ApiError 400 if the model cannot serve the request."""
        return cls(service, request, f"chatcmpl-{uuid.uuid4().hex}", await service.prepare(as_spec(request)))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return super()._object(kind, choices) | {"service_tier": "default"}

    def _whole_choices(self, deltas: list[list[Delta]]) -> list[dict[str, Any]]:
        return [self._whole_choice(index, parts) for index, parts in enumerate(deltas)]

    def _whole_choice(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        return {
            "index": index,
            "message": _message([event for delta in deltas for event in delta.events]),
            "logprobs": self._logprobs(
                Delta(
                    tokens=[token for delta in deltas for token in delta.tokens],
                    logprobs=[logprob for delta in deltas for logprob in delta.logprobs],
                )
            ),
            "finish_reason": self._choices[index].finish_reason,
        }

    def _begin(self) -> list[dict[str, Any]]:
        return [_piece({"role": "assistant", "content": "", "refusal": None})]

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:  # noqa: ARG002 - only some protocols need it
        pieces = [_piece(_delta(event)) for event in delta.events]
        if delta.logprobs:
            if not pieces:  # the text of these tokens is held back
                pieces.append(_piece({}))
            pieces[0]["logprobs"] = self._logprobs(delta)
        if delta.finish_reason is not None:
            pieces.append(_piece({}, delta.finish_reason))
        return pieces

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self._request.num_logprobs is None:
            return None
        return chat_logprobs(delta.tokens, delta.logprobs, self._service.answer_piece)


async def create(call: Call[ChatRequest]) -> ChatCompletion:
    service = await call.server.fleet.accepting(call.request.model)
    return await ChatCompletion.create(service, call.request)


def _piece(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _delta(event: Event) -> dict[str, Any]:
    match event:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallBegin(index, call_id, name):
            return {"tool_calls": [{"index": index, **_call(call_id, name)}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _call(call_id: str, name: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}


def _message(events: list[Event]) -> dict[str, Any]:
    content, reasoning = "", ""
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallBegin(index, call_id, name):
                calls[index] = _call(call_id, name)
            case CallArguments(index, text):
                calls[index]["function"]["arguments"] += text
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message
