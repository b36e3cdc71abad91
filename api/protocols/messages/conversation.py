"""Anthropic's messages in neutral form."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from api.errors import ApiError
from api.protocols.messages.request import (
    AssistantBlock,
    CountTokensRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserBlock,
)
from api.protocols.structured import schema_constraint
from api.protocols.tools import ToolChoice, tool_use
from api.serving.spec import Conversation, GenerationSpec, Message, ToolCall
from api.text.dialects import Tool, ToolUse

Block = TextBlock | UserBlock | AssistantBlock


def as_spec(request: MessagesRequest) -> GenerationSpec:
    """Raises ApiError 400 for a last message that cannot begin an answer, and for wishes that exclude each other."""
    sampling = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    schema_param = "output_format" if request.output_format else "output_config.format"
    schema = request.schema_to_match
    return GenerationSpec(
        as_conversation(request),
        max_tokens=max(request.max_tokens, 1),
        may_shorten=True,
        sampling={name: value for name, value in sampling.items() if value is not None},
        stop=request.stop_sequences,
        constraint=None if schema is None else schema_constraint(schema_param, schema),
        tool_use=_tool_use(request),
    )


def as_conversation(request: CountTokensRequest) -> Conversation:
    """A last message of the assistant's is the beginning of the answer.

    Raises ApiError 400 for one that cannot be, and for wishes that exclude each other.
    """
    turns = [
        (role, [block for turn in turns for block in turn.content])
        for role, turns in groupby(request.messages, key=lambda turn: turn.role)
    ]
    prefill = ""
    if turns[-1][0] == "assistant":
        prefill = _prefill(request, turns.pop()[1])
    rules = _text(request.system or ())
    messages = [Message("system", rules)] if rules else []
    for role, blocks in turns:
        messages += _messages(role, blocks)
    if not messages:
        raise ApiError(400, "'messages' needs one that is not the assistant's.", param="messages", code="invalid_value")
    _tool_use(request)
    is_without = request.tool_choice is not None and request.tool_choice.type == "none"
    return Conversation(messages, () if is_without else _tools(request), _template_variables(request), prefill)


def _prefill(request: CountTokensRequest, blocks: Sequence[Block]) -> str:
    unserved = next((block.type for block in blocks if isinstance(block, ToolUseBlock | ThinkingBlock)), None)
    if unserved is not None:
        message = (
            f"A last message of role 'assistant' is the beginning of the answer: {unserved!r} is not served there."
        )
        raise ApiError(400, message, param="messages", code="unsupported_value")
    prefill = _text(blocks)
    if prefill and request.schema_to_match is not None:
        message = "'messages' cannot end with the beginning of the answer where that must match a schema."
        raise ApiError(400, message, param="messages", code="invalid_value")
    return prefill


def _messages(role: str, blocks: Sequence[Block]) -> list[Message]:
    """Of one turn: results of tools are messages of their own, before what the user says to them."""
    if role == "assistant":
        thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        return [Message(role, _text(blocks), calls, thoughts or None)]
    results = [
        Message("tool", _result(block), tool_call_id=block.tool_use_id)
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    says_more = not results or any(isinstance(block, TextBlock) for block in blocks)
    return [*results, Message(role, _text(blocks))] if says_more else results


def _result(block: ToolResultBlock) -> str:
    """Chats have no word for a tool that failed, so the result begins with one."""
    text = _text(block.content or ())
    return f"Error: {text}".removesuffix(": ") if block.is_error else text


def _text(blocks: Sequence[Block]) -> str:
    """Blocks are joined by a line break, as a chat's text parts are."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _call(block: ToolUseBlock) -> ToolCall:
    arguments = json.dumps(block.input, ensure_ascii=False)  # laid out as answers are, so that it is found in memory
    return ToolCall(block.id, block.name, arguments)


def _tools(request: CountTokensRequest) -> list[Tool]:
    return [Tool(tool.name, tool.description, tool.input_schema, bool(tool.strict)) for tool in request.tools or ()]


def _tool_use(request: CountTokensRequest) -> ToolUse | None:
    """Raises ApiError 400 for a choice that does not fit the tools."""
    choice = request.tool_choice
    if choice is None:
        return tool_use(_tools(request), ToolChoice())
    if choice.name is not None:
        return tool_use(_tools(request), ToolChoice("required", [choice.name], parallel=False))
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "any" | "tool":
            return tool_use(_tools(request), ToolChoice("required", parallel=parallel))
        case mode:
            return tool_use(_tools(request), ToolChoice(mode, parallel=parallel))


def _template_variables(request: CountTokensRequest) -> dict[str, Any]:
    """Those by which templates turn thoughts on and off, and make them longer."""
    variables: dict[str, Any] = {}
    if request.thinking is not None:
        variables["enable_thinking"] = request.thinking.type != "disabled"
    if request.output_config is not None and request.output_config.effort is not None:
        variables["reasoning_effort"] = request.output_config.effort
    return variables
