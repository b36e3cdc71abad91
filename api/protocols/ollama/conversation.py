"""Converts Ollama's requests to the neutral form."""

import json
from collections.abc import Sequence
from typing import Any

from api.errors import ApiError
from api.protocols.ollama.request import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaToolCall,
    Think,
)
from api.protocols.structured import schema_constraint
from api.protocols.template_fields import template_variables
from api.protocols.tools import ToolChoice, tool_use
from api.serving.spec import Constraint, Conversation, GenerationSpec, Message, Texts, ToolCall


def chat_spec(request: OllamaChatRequest) -> GenerationSpec:
    """Raises ApiError 400 if the final assistant message cannot be continued, or if two tools have one name."""
    messages, prefill = list(request.messages or ()), ""
    if messages[-1].role == "assistant" and not messages[-1].tool_calls:
        prefill = messages.pop().content or ""
    if not messages:
        message = "'messages' must contain a message that is not the assistant's."
        raise ApiError(400, message, param="messages", code="invalid_value")
    if prefill and request.schema_to_match is not None:
        message = "'messages' cannot end with an assistant message if the answer must match a format."
        raise ApiError(400, message, param="messages", code="invalid_value")
    tools = request.all_tools()
    conversation = Conversation(_neutral(messages), tools, _variables(request.think), prefill)
    options = request.given_options
    spec = GenerationSpec(
        conversation,
        max_tokens=options.max_tokens,
        sampling=options.sampling(),
        stop=options.stop,
        constraint=_constraint(request.schema_to_match),
        tool_use=tool_use(tools, ToolChoice()),
        logprobs=request.num_logprobs,
    )
    return request.sharing(spec)


def generate_spec(request: OllamaGenerateRequest) -> GenerationSpec:
    """The prompt is a conversation of one question, or a text if the request says so."""
    options, prompt = request.given_options, request.prompt or ""
    spec = GenerationSpec(
        Texts([prompt], request.suffix or None) if request.is_text else _question(request, prompt),
        max_tokens=options.max_tokens,
        sampling=options.sampling(),
        stop=options.stop,
        constraint=_constraint(request.schema_to_match),
        logprobs=request.num_logprobs,
    )
    return request.sharing(spec)


def _question(request: OllamaGenerateRequest, prompt: str) -> Conversation:
    rules = [Message("system", request.system)] if request.system else []
    return Conversation([*rules, Message("user", prompt)], (), _variables(request.think), param="prompt")


def _variables(think: Think | None) -> dict[str, Any]:
    if isinstance(think, str):
        return template_variables(None, think)
    return template_variables(None, None, think)


def _constraint(schema: dict[str, Any] | None) -> Constraint | None:
    return None if schema is None else schema_constraint("format", schema)


def _neutral(messages: Sequence[OllamaMessage]) -> list[Message]:
    """The messages, with an id for each call. A result without an id answers the next open call of its tool."""
    found: list[Message] = []
    unanswered: list[ToolCall] = []
    for number, message in enumerate(messages):
        calls = [_call(call, f"call_{number}_{index}") for index, call in enumerate(message.tool_calls or ())]
        unanswered += calls
        answered = _answered(message, unanswered) if message.role == "tool" else None
        found.append(Message(message.role, message.content or "", calls, message.thinking, answered, message.tool_name))
    return found


def _call(call: OllamaToolCall, own_id: str) -> ToolCall:
    given = call.function.arguments
    # an object is formatted like answers, to get a prefix hit
    arguments = json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given or ""
    return ToolCall(call.id or own_id, call.function.name, arguments)


def _answered(message: OllamaMessage, unanswered: list[ToolCall]) -> str:
    """The id of the call whose result the message is. The call is removed from the unanswered ones."""
    named = [call for call in unanswered if message.tool_call_id in (None, call.id)]
    named = [call for call in named if message.tool_name in (None, call.name)] or named
    if not named:
        return message.tool_call_id or "call_unknown"
    unanswered.remove(named[0])
    return named[0].id
