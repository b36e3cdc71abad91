"""Converts requests of the Responses API to the neutral form."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Final

from pydantic import BaseModel

from api.errors import ApiError
from api.protocols.custom import arguments_of
from api.protocols.hosted import names_of
from api.protocols.responses.items import Item
from api.protocols.responses.request import FlatJsonSchema, InputTokensRequest, ReasoningConfig, ResponseRequest
from api.protocols.responses.tools import full_name, functions_of
from api.protocols.structured import constraint, format_constraint, schema_constraint
from api.protocols.template_fields import template_variables
from api.protocols.tools import ToolChoice, tool_use
from api.serving.spec import Constraint, Conversation, GenerationSpec, Message, ToolCall
from api.text.dialects import ToolUse

FORMAT: Final = "text.format"
CALLS: Final = ("function_call", "custom_tool_call")


def as_spec(request: ResponseRequest, items: Iterable[Item]) -> GenerationSpec:
    """Raises ApiError 400 if fields contradict each other, or if there is nothing to respond to."""
    conversation = as_conversation(request, items)
    return replace(
        request.generation(conversation),
        max_tokens=request.max_output_tokens,
        constraint=constraint(request, _format(request)),
        tool_use=_tool_use(request),
        logprobs=(request.top_logprobs or 0) if request.wants_logprobs else None,
        reasoning_budget=request.thought_budget(),
        keeps_reasoning=request.keeps_reasoning,
    )


def as_conversation(request: InputTokensRequest, items: Iterable[Item]) -> Conversation:
    """Raises ApiError 400 if the choice does not fit the tools, or if there is nothing to respond to."""
    messages = as_messages(items)
    if not messages:
        message = "'input' or 'previous_response_id' must contain something to respond to."
        raise ApiError(400, message, param="input", code="missing_required_parameter")
    _tool_use(request)
    instructions = [] if request.instructions is None else [Message("system", request.instructions)]
    listed = () if request.tool_choice == "none" else functions_of(request.tools)
    reasoning = request.reasoning or ReasoningConfig()
    variables = template_variables(
        request.chat_template_kwargs,
        reasoning.effort,
        request.enable_thinking,
        request.thought_budget(),
        asks=reasoning.max_tokens is not None,
    )
    return Conversation([*instructions, *messages], listed, variables, param="input")


def _format(request: InputTokensRequest) -> Constraint | None:
    wanted = request.text.format if request.text else None
    if isinstance(wanted, FlatJsonSchema):
        return schema_constraint(FORMAT, wanted.schema_, strict=bool(wanted.strict))
    return format_constraint(FORMAT, wanted)


def _tool_use(request: InputTokensRequest) -> ToolUse | None:
    """The tools that may be called. Raises ApiError 400 if the choice does not fit them."""
    parallel, choice = request.parallel_tool_calls is not False, request.tool_choice
    if isinstance(choice, BaseModel):
        wanted = choice.neutral(parallel=parallel)
    else:
        wanted = ToolChoice(choice or "auto", parallel=parallel)
    return tool_use(functions_of(request.tools), wanted, names_of(request.tools or ()))


def as_messages(items: Iterable[Item]) -> list[Message]:
    """The conversation as messages. Consecutive items of the assistant become one message.

    Many templates refuse two messages of the assistant in a row.
    """
    messages: list[Message] = []
    for is_of_assistant, turn in groupby(items, key=_is_of_assistant):
        messages += _answer(turn) if is_of_assistant else map(_message, turn)  # noqa: B031 - it is used once
    return messages


def _is_of_assistant(item: Item) -> bool:
    return item["type"] in ("reasoning", *CALLS) or item.get("role") == "assistant"


def _answer(turn: Iterable[Item]) -> list[Message]:
    """The message of consecutive assistant items; none if they are only reasoning without text."""
    reasoning: list[str] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    follows_call = False
    for item in turn:
        match item["type"]:
            case "reasoning":
                reasoning.append(_text(item["content"] or item["summary"]))
            case "custom_tool_call":
                calls.append(ToolCall(item["call_id"], _name(item), arguments_of(item["input"])))
            case "function_call":
                calls.append(ToolCall(item["call_id"], _name(item), item["arguments"]))
            case "message":
                if texts and not follows_call:  # texts around a call were one text
                    texts.append("\n")
                texts.append(_text(item["content"]))
        follows_call = item["type"] in CALLS
    joined = "\n".join(filter(None, reasoning))
    if not joined and not texts and not calls:
        return []
    return [Message("assistant", "".join(texts), calls, joined or None)]


def _message(item: Item) -> Message:
    if item["type"] in ("function_call_output", "custom_tool_call_output"):
        output = item["output"]
        content = output if isinstance(output, str) else _text(output)
        name = _name(item) if "name" in item else None
        return Message("tool", content, tool_call_id=item["call_id"], name=name)
    return Message(item["role"], _text(item["content"]))


def _name(item: Item) -> str:
    """The name by which the model calls a function."""
    return full_name(item.get("namespace"), item["name"])


def _text(parts: Iterable[Item]) -> str:
    """The text of the parts, joined by a line break as the parts of a chat message are."""
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts)
