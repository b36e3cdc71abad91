"""POST /v1/chat/completions: renders chat completions, whole or as a stream of chunks."""

import uuid
from typing import Any, Self

from api.protocols.call import Call
from api.protocols.chat.conversation import as_spec
from api.protocols.chat.request import ChatRequest
from api.protocols.chunks import ChunkedAnswer
from api.protocols.custom import InputReader, input_of
from api.protocols.logprobs import chat_logprobs
from api.protocols.priorities import served_tier
from api.protocols.rendered import rendered
from api.serving.choice import Delta
from api.serving.service import ModelService, Prepared
from api.text.dialects import CallArguments, CallBegin, Content, Event, Reasoning


class ChatCompletion(ChunkedAnswer[ChatRequest]):
    """The answers to one conversation."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, service: ModelService, request: ChatRequest, response_id: str, prepared: Prepared) -> None:
        super().__init__(service, request, response_id, prepared)
        self._hides_reasoning = request.leaves_out_reasoning()
        self._custom = request.custom_names()
        self._readers: dict[tuple[int, int], InputReader] = {}
        """The readers of a stream's calls of custom tools, by choice and call."""

    @classmethod
    async def create(cls, service: ModelService, call: Call[ChatRequest]) -> Self:
        """Raises ApiError 400 if the model cannot serve the request."""
        prepared = await service.prepare(call.owned(as_spec(call.request)))
        return cls(service, call.request, f"chatcmpl-{uuid.uuid4().hex}", prepared)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        tier = served_tier(self._request.service_tier, self._submits[0].priority)
        return super()._object(kind, choices) | {"service_tier": tier}

    def _whole_choices(self, deltas: list[list[Delta]]) -> list[dict[str, Any]]:
        return [self._whole_choice(index, parts) for index, parts in enumerate(deltas)]

    def _whole_choice(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        return {
            "index": index,
            "message": _message([event for delta in deltas for event in delta.events], self._custom),
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

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        pieces = [_piece(written) for event in delta.events if (written := self._delta(index, event)) is not None]
        if delta.logprobs:
            if not pieces:  # the text of these tokens is held back
                pieces.append(_piece({}))
            pieces[0]["logprobs"] = self._logprobs(delta)
        if delta.finish_reason is not None:
            pieces.append(_piece({}, delta.finish_reason))
        return pieces

    def _delta(self, choice: int, event: Event) -> dict[str, Any] | None:
        """The delta for an event; None if it has nothing for the client."""
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallBegin(index, call_id, name):
                is_custom = name in self._custom
                if is_custom:
                    self._readers[choice, index] = InputReader()
                return {"tool_calls": [{"index": index, **_call(call_id, name, is_custom=is_custom)}]}
            case CallArguments(index, text):
                reader = self._readers.get((choice, index))
                if reader is None:
                    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
                piece = reader.push(text)
                return {"tool_calls": [{"index": index, "custom": {"input": piece}}]} if piece else None

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self._request.num_logprobs is None:
            return None
        return chat_logprobs(delta.tokens, delta.logprobs, self._service.answer_piece)


async def create(call: Call[ChatRequest]) -> ChatCompletion:
    service = await call.accepting(call.request.model)
    return await ChatCompletion.create(service, call)


async def render(call: Call[ChatRequest]) -> dict[str, Any]:
    """The conversation's prompt as tokens. Raises ApiError as the generation would."""
    service = await call.service(call.request.model)
    [prompt] = await rendered(service, call.request, as_spec(call.request), "chatcmpl")
    return prompt


def _piece(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _call(call_id: str, name: str, *, is_custom: bool) -> dict[str, Any]:
    if is_custom:
        return {"id": call_id, "type": "custom", "custom": {"name": name, "input": ""}}
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}


def _message(events: list[Event], custom: frozenset[str]) -> dict[str, Any]:
    """`custom`: the names of the custom tools."""
    content, reasoning = "", ""
    arguments: dict[int, str] = {}
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallBegin(index, call_id, name):
                calls[index], arguments[index] = _call(call_id, name, is_custom=name in custom), ""
            case CallArguments(index, text):
                arguments[index] += text
    for index, call in calls.items():
        if call["type"] == "custom":
            call["custom"]["input"] = input_of(arguments[index])
        else:
            call["function"]["arguments"] = arguments[index]
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
