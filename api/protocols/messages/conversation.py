"""Converts requests for Anthropic's messages to the neutral form."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from api.errors import ApiError
from api.protocols.hosted import HostedTool, names_of
from api.protocols.messages.media import HistoryBlock, MediaBlock
from api.protocols.messages.request import (
    AssistantBlock,
    CountTokensRequest,
    MessagesRequest,
    ResultBlock,
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

Block = TextBlock | UserBlock | AssistantBlock | ResultBlock
Readable = TextBlock | MediaBlock | HistoryBlock
"""Blocks that have a text."""


def as_spec(request: MessagesRequest) -> GenerationSpec:
    """Raises ApiError 400 if the final assistant message cannot be continued, or if fields exclude each other."""
    sampling = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    schema_param = "output_format" if request.output_format else "output_config.format"
    schema = request.schema_to_match
    spec = GenerationSpec(
        as_conversation(request),
        max_tokens=max(request.max_tokens, 1),
        sampling={name: value for name, value in sampling.items() if value is not None},
        stop=request.stop_sequences,
        constraint=None if schema is None else schema_constraint(schema_param, schema),
        tool_use=_tool_use(request),
        reasoning_budget=request.thinking.budget_tokens if request.thinking else None,
    )
    return request.sharing(spec)


def as_conversation(request: CountTokensRequest) -> Conversation:
    """The conversation of a request. A final assistant message is continued (prefill).

    Raises ApiError 400 if the final message cannot be continued, or if fields exclude each other.
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
        message = "'messages' must contain a message that is not the assistant's."
        raise ApiError(400, message, param="messages", code="invalid_value")
    _tool_use(request)
    is_without = request.tool_choice is not None and request.tool_choice.type == "none"
    return Conversation(messages, () if is_without else _tools(request), _template_variables(request), prefill)


def _prefill(request: CountTokensRequest, blocks: Sequence[Block]) -> str:
    unserved = next((block.type for block in blocks if isinstance(block, ToolUseBlock | ThinkingBlock)), None)
    if unserved is not None:
        message = f"A final message of role 'assistant' is continued (prefill): {unserved!r} is not supported in it."
        raise ApiError(400, message, param="messages", code="unsupported_value")
    prefill = _text(blocks)
    if prefill and request.schema_to_match is not None:
        message = "'messages' cannot end with an assistant message (prefill) if the answer must match a schema."
        raise ApiError(400, message, param="messages", code="invalid_value")
    return prefill


def _messages(role: str, blocks: Sequence[Block]) -> list[Message]:
    """The messages of one turn. Tool results become separate messages before the user's text."""
    if role == "assistant":
        thinking = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        return [Message(role, _text(blocks), calls, thinking or None)]
    results = [
        Message("tool", _result(block), tool_call_id=block.tool_use_id)
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    has_user_message = not results or any(isinstance(block, TextBlock | MediaBlock) for block in blocks)
    return [*results, Message(role, _text(blocks))] if has_user_message else results


def _result(block: ToolResultBlock) -> str:
    """The text of a result. Chat templates have no field for a failed tool, so its result begins with "Error"."""
    text = _text(block.content or ())
    return f"Error: {text}".removesuffix(": ") if block.is_error else text


def _text(blocks: Sequence[Block]) -> str:
    """The text of the blocks, joined by a line break as the parts of a chat message are."""
    return "\n".join(block.text for block in blocks if isinstance(block, Readable) and block.text is not None)


def _call(block: ToolUseBlock) -> ToolCall:
    given = block.input
    # an object is formatted like answers, to get a prefix hit
    arguments = json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given or ""
    return ToolCall(block.id, block.name, arguments)


def _tools(request: CountTokensRequest) -> list[Tool]:
    return [
        Tool(tool.name, tool.description, tool.input_schema, bool(tool.strict))
        for tool in request.tools or ()
        if not isinstance(tool, HostedTool)
    ]


def _tool_use(request: CountTokensRequest) -> ToolUse | None:
    """The tools that may be called. Raises ApiError 400 if the choice does not fit them."""
    return tool_use(_tools(request), _choice(request), names_of(request.tools or ()))


def _choice(request: CountTokensRequest) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice()
    if choice.name is not None:
        return ToolChoice("required", [choice.name], parallel=False)
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "any" | "tool":
            return ToolChoice("required", parallel=parallel)
        case mode:
            return ToolChoice(mode, parallel=parallel)


def _template_variables(request: CountTokensRequest) -> dict[str, Any]:
    """The variables with which templates turn reasoning on and off, and make it longer."""
    variables: dict[str, Any] = {}
    thinking, config = request.thinking, request.output_config
    if thinking is not None:
        variables["enable_thinking"] = thinking.type != "disabled"
        if thinking.budget_tokens is not None:
            variables["thinking_budget"] = thinking.budget_tokens
    if config is not None and config.effort is not None:
        variables["reasoning_effort"] = config.effort
    return variables
