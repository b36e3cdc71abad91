"""POST /api/chat and /api/generate: renders answers in Ollama's format, whole or as lines of JSON."""

from abc import abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import orjson
import trio

from api.errors import ApiError
from api.protocols.answer import Answer
from api.protocols.call import Call, Reply
from api.protocols.logprobs import chat_logprobs
from api.protocols.ollama.conversation import chat_spec, generate_spec
from api.protocols.ollama.errors import error_body, not_found
from api.protocols.ollama.request import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest
from api.protocols.tools import arguments_object
from api.serving.choice import Delta
from api.serving.service import ModelService, Prepared, Use
from api.text.dialects import CallArguments, CallBegin, Content, Event, Reasoning

LINES: Final = "application/x-ndjson"

Part = dict[str, Any]
"""Some of the fields `content`, `thinking` and `tool_calls`."""


class LineAnswer(Answer):
    """An answer whose stream is lines of JSON. Each has a part of the answer; the last one has the counts and times."""

    content_type: ClassVar[str] = LINES

    def __init__(
        self,
        service: ModelService,
        request: OllamaChatRequest | OllamaGenerateRequest,
        prepared: Prepared,
        load_seconds: float,
    ) -> None:
        super().__init__(service, prepared)
        self._request = request
        self._load_seconds = load_seconds
        self._calls = CallReader()

    def _whole(self, deltas: list[list[Delta]]) -> dict[str, Any]:
        parts = [part for delta in deltas[0] for event in delta.events for part in self._calls.push(event)]
        whole: Part = {"content": ""}
        for part in [*parts, *self._calls.finish()]:
            for name, value in part.items():
                whole[name] = whole[name] + value if name in whole else value
        tokens = [token for delta in deltas[0] for token in delta.tokens]
        logprobs = [logprob for delta in deltas[0] for logprob in delta.logprobs]
        return self._head() | self._body(whole) | self._logprobs(Delta(tokens=tokens, logprobs=logprobs)) | self._tail()

    def _beginning(self) -> bytes:
        return b""

    def _news(self, index: int, delta: Delta) -> bytes:  # noqa: ARG002 - there is one choice
        parts: list[Part] = [part for event in delta.events for part in self._calls.push(event)]
        if delta.logprobs and not parts:  # the text of these tokens is held back
            parts = [{"content": ""}]
        lines = [self._head() | self._body({"content": ""} | part) | {"done": False} for part in parts]
        if lines:
            lines[0] |= self._logprobs(delta)
        return b"".join(map(line, lines))

    def _end(self) -> bytes:
        lines = [self._head() | self._body({"content": ""} | part) | {"done": False} for part in self._calls.finish()]
        return b"".join(map(line, [*lines, self._head() | self._body({"content": ""}) | self._tail()]))

    def _failure(self, error: ApiError) -> bytes:
        return line(error_body(error))

    def _ping(self) -> bytes:
        return line(self._head() | self._body({"content": ""}) | {"done": False})

    def _queued(self, position: int) -> bytes:  # noqa: ARG002 - lines of JSON have no comments
        return b""

    def _head(self) -> dict[str, Any]:
        return head(self._request.model)

    def _tail(self) -> dict[str, Any]:
        """Why the answer ended, its counts, and its times in nanoseconds."""
        [choice], record = self._choices, self._record
        first, last = record.first_output, record.last_output
        prompt_seconds = answer_seconds = 0.0
        if first is not None and last is not None and record.submitted is not None:
            prompt_seconds = max(first - record.submitted - record.queue_seconds, 0.0)
            answer_seconds = last - first
        return {
            "done": True,
            "done_reason": "length" if choice.finish_reason == "length" else "stop",
            "total_duration": nanoseconds(trio.current_time() - record.arrival),
            "load_duration": nanoseconds(self._load_seconds),
            "prompt_eval_count": sum(len(prompt.tokens) for prompt in self._prompts),
            "prompt_eval_duration": nanoseconds(prompt_seconds),
            "eval_count": choice.num_tokens,
            "eval_duration": nanoseconds(answer_seconds),
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        if self._request.num_logprobs is None:
            return {}
        return {"logprobs": chat_logprobs(delta.tokens, delta.logprobs, self._service.answer_piece)["content"]}

    @abstractmethod
    def _body(self, part: Part) -> dict[str, Any]:
        """The part in the fields of the answer."""


class CallReader:
    """Turns the events of an answer into parts. A call becomes one part when it is complete."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._id, self._name, self._arguments = "", "", ""

    def push(self, event: Event) -> Iterator[Part]:
        if isinstance(event, CallArguments):
            self._arguments += event.text
            return
        yield from self.finish()
        match event:
            case Content(text):
                yield {"content": text}
            case Reasoning(text):
                yield {"thinking": text}
            case CallBegin(_, call_id, name):
                self._id, self._name, self._arguments = call_id, name, ""

    def finish(self) -> Iterator[Part]:
        """The call that is open, if there is one. Of a call that was cut, it has the complete arguments."""
        if not self._id:
            return
        function = {"index": self._num_calls, "name": self._name, "arguments": arguments_object(self._arguments)}
        yield {"tool_calls": [{"id": self._id, "function": function}]}
        self._id, self._num_calls = "", self._num_calls + 1


class ChatAnswer(LineAnswer):
    def _body(self, part: Part) -> dict[str, Any]:
        return {"message": {"role": "assistant", **part}}


class GenerateAnswer(LineAnswer):
    def _body(self, part: Part) -> dict[str, Any]:
        thinking = {"thinking": part["thinking"]} if "thinking" in part else {}
        return {"response": part["content"], **thinking}


async def chat(call: Call[OllamaChatRequest]) -> ChatAnswer | Reply:
    """Raises ApiError 400 if the model cannot serve the request."""
    request = call.request
    if not request.messages:
        return await _loaded(call, {"message": {"role": "assistant", "content": ""}}, streams=request.stream)
    service, seconds = await opened(call)
    _check(service, request)
    return ChatAnswer(service, request, await service.prepare(call.owned(chat_spec(request))), seconds)


async def generate(call: Call[OllamaGenerateRequest]) -> GenerateAnswer | Reply:
    """Raises ApiError 400 if the model cannot serve the request."""
    request = call.request
    if not (request.prompt or request.suffix):
        return await _loaded(call, {"response": ""}, streams=request.stream)
    service, seconds = await opened(call)
    _check(service, request)
    return GenerateAnswer(service, request, await service.prepare(call.owned(generate_spec(request))), seconds)


async def opened(call: Call[Any], use: Use = "generate") -> tuple[ModelService, float]:
    """The model's service, and the seconds that loading it took. Raises ApiError as Fleet.accepting does.

    Raises ApiError 400 if the model's context is smaller than `num_ctx`.
    """
    request: OllamaRequest = call.request
    started = trio.current_time()
    try:
        service = await call.accepting(request.model, use)
    except ApiError as error:
        if error.code == "model_not_found":
            raise not_found(request.model, error) from error
        raise
    wanted, has = request.given_options.num_ctx, service.context_length
    if wanted is not None and has is not None and wanted > has:
        message = (
            f"'options.num_ctx' is {wanted}, but the context of this model has {has} tokens. The server's flag "
            "--ctx-len sets it."
        )
        raise ApiError(400, message, param="options.num_ctx", code="invalid_value")
    return service, trio.current_time() - started


def _check(service: ModelService, request: OllamaChatRequest | OllamaGenerateRequest) -> None:
    if request.think and not service.prompts.dialect.thinks:
        message = f'"{request.model}" does not support thinking'
        raise ApiError(400, message, param="think", code="unsupported_parameter")


async def _loaded(call: Call[Any], body: dict[str, Any], *, streams: bool) -> Reply:
    """The answer to a request without a question, which loads the model. Raises ApiError 400 if it should unload it."""
    request: OllamaRequest = call.request
    if request.unloads:
        message = "A model is not unloaded by 'keep_alive' here. An administrator stops it (POST /v1/models/stop)."
        raise ApiError(400, message, param="keep_alive", code="unsupported_parameter")
    _, seconds = await opened(call)
    times = {"total_duration": nanoseconds(seconds), "load_duration": nanoseconds(seconds)}
    answer = head(request.model) | body | {"done": True, "done_reason": "load"} | times
    return Reply(line(answer), content_type=LINES) if streams else Reply(orjson.dumps(answer))


def head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": written_time(datetime.now(UTC))}


def written_time(time: datetime) -> str:
    """A time in UTC as Ollama writes it."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def line(data: dict[str, Any]) -> bytes:
    return orjson.dumps(data) + b"\n"
