"""POST /v1/messages and /v1/messages/count_tokens: renders answers in Anthropic's format."""

import uuid
from collections.abc import Iterator
from typing import Any, Final, Self

from api.errors import ApiError
from api.protocols.answer import Answer, event
from api.protocols.call import Call
from api.protocols.messages.conversation import as_conversation, as_spec
from api.protocols.messages.request import CountTokensRequest, MessagesRequest
from api.protocols.tools import arguments_object
from api.serving.choice import Delta
from api.serving.service import ModelService, Prepared
from api.text.dialects import CallArguments, CallBegin, Content, Event, Reasoning, merged

PATH: Final = "/v1/messages"
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_NO_THREADS: Final = {"error_code": "thread_unsupported_request"}
"""Makes the SDK's tool runner send whole conversations."""


def is_ours(path: str) -> bool:
    """Whether a URL's path belongs to Anthropic's API, with or without `/v1`. Its errors have Anthropic's form."""
    return f"/v1{path.removeprefix('/v1')}/".startswith(f"{PATH}/")


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """An error in Anthropic's form, which has no `param`: the message names the invalid field."""
    message = error.message
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # agents match this text and shorten the conversation
    elif error.param and error.param not in message:
        message = f"{error.param}: {message}"
    kind = _ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    details = _NO_THREADS if error.param == "thread" else None
    return {
        "type": "error",
        "error": {"type": kind, "message": message, "details": details},
        "request_id": request_id,
    }


async def create(call: Call[MessagesRequest]) -> "MessageAnswer":
    service = await call.accepting(call.request.model)
    return await MessageAnswer.create(service, call)


async def count_tokens(call: Call[CountTokensRequest]) -> dict[str, Any]:
    """Raises ApiError 400 if the model's template refuses the conversation."""
    service = await call.service(call.request.model)
    return {"input_tokens": len(await service.prompts.chat(as_conversation(call.request)))}


class MessageAnswer(Answer):
    """The message that answers a conversation."""

    @classmethod
    async def create(cls, service: ModelService, call: Call[MessagesRequest]) -> Self:
        """Raises ApiError 400 if the model cannot serve the request."""
        prepared = await service.prepare(call.owned(as_spec(call.request)))
        return cls(service, call.request, call.request_id, prepared)

    def __init__(self, service: ModelService, request: MessagesRequest, request_id: str, prepared: Prepared) -> None:
        super().__init__(service, prepared)
        self._request = request
        self._request_id = request_id
        self._id = f"msg_{uuid.uuid4().hex}"
        self._shows_thinking = request.thinking is None or request.thinking.display != "omitted"
        self._num_blocks = 0
        self._block: str | None = None
        """The type of a stream's open block; None if no block is open."""

    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for part in merged(part for delta in deltas[0] for part in self._parts(delta)):
            match part:
                case Content(text):
                    content.append(_text_block(text))
                case Reasoning(text):
                    content.append(_thinking_block(text if self._shows_thinking else "", self._id))
                case CallBegin(_, call_id, name):
                    content.append(_call_block(call_id, name))
                case CallArguments(_, text):
                    content[-1]["input"] = arguments_object(text)
        return self._message(content) | self._stop() | {"usage": self._usage()}

    def _beginning(self) -> bytes:
        nothing = {"stop_reason": None, "stop_sequence": None}
        return _event("message_start", message=self._message([]) | nothing | {"usage": self._usage()})

    def _news(self, index: int, delta: Delta) -> bytes:  # noqa: ARG002 - there is one choice
        return b"".join(piece for part in self._parts(delta) for piece in self._pieces(part))

    def _end(self) -> bytes:
        end = [_event("message_delta", delta=self._stop(), usage=self._usage()), _event("message_stop")]
        return b"".join([*self._close(), *end])

    def _failure(self, error: ApiError) -> bytes:
        return event(error_body(error, self._request_id), "error")

    def _ping(self) -> bytes:
        return _event("ping")

    def _parts(self, delta: Delta) -> list[Event]:
        return delta.events if self._request.max_tokens else []  # the engine generates at least one token

    def _pieces(self, part: Event) -> Iterator[bytes]:
        match part:
            case Content(text):
                yield from self._within(_text_block(""))
                yield self._delta("text_delta", text=text)
            case Reasoning(text):
                yield from self._within(_thinking_block("", ""))
                if self._shows_thinking:
                    yield self._delta("thinking_delta", thinking=text)
            case CallBegin(_, call_id, name):
                yield from self._open(_call_block(call_id, name))
            case CallArguments(_, text):
                yield self._delta("input_json_delta", partial_json=text)

    def _within(self, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block of this type unless one is open."""
        if self._block != block["type"]:
            yield from self._open(block)

    def _open(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._block = block["type"]
        self._num_blocks += 1
        yield _event("content_block_start", index=self._num_blocks - 1, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._block == "thinking":
            yield self._delta("signature_delta", signature=self._id)
        if self._block is not None:
            yield _event("content_block_stop", index=self._num_blocks - 1)
        self._block = None

    def _delta(self, kind: str, **piece: str) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta={"type": kind, **piece})

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._request.model
        return {"id": self._id, "type": "message", "role": "assistant", "model": model, "content": content}

    def _stop(self) -> dict[str, Any]:
        """Why the answer ended. `stop_sequence` precedes `tool_use`: a call that was cut must not be executed."""
        [choice], [submit] = self._choices, self._submits
        if not self._request.max_tokens:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if choice.stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop}
        is_limit = submit.max_tokens == self._request.max_tokens
        reasons = {
            "length": "max_tokens" if is_limit else "model_context_window_exceeded",
            "tool_calls": "tool_use",
        }
        return {"stop_reason": reasons.get(choice.finish_reason or "", "end_turn"), "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        [choice], [submit] = self._choices, self._submits
        is_wanted = self._request.max_tokens > 0
        return {
            "input_tokens": len(submit.tokens) - choice.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": choice.cached_tokens,
            "output_tokens": choice.num_tokens if is_wanted else 0,
            "output_tokens_details": {"thinking_tokens": choice.num_reasoning_tokens if is_wanted else 0},
        }


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _thinking_block(text: str, signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": signature}


def _call_block(call_id: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{call_id.removeprefix('call_')}", "name": name, "input": {}}
