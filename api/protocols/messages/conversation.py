"""Anthropic's messages as chats: what becomes of each turn, and of what is asked for beside them."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from api.errors import ApiError
from api.protocols.chat.request import ChatRequest, FunctionReference, NamedTool
from api.protocols.conversation import CalledFunction, FunctionDefinition, Message, ToolCall, ToolDefinition
from api.protocols.formats import JsonSchemaFormat
from api.protocols.messages.request import (
    AssistantBlock,
    CountTokensRequest,
    CustomTool,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UserBlock,
)

Block = TextBlock | UserBlock | AssistantBlock


def as_chat(request: CountTokensRequest) -> tuple[ChatRequest, str]:
    """The chat, and the beginning of its answer: a last message of the assistant's, which the answer goes on from.

    Raises ApiError 400 for a last message that cannot be one, and for wishes that exclude each other.
    """
    turns = [
        (role, [block for turn in turns for block in turn.content])
        for role, turns in groupby(request.messages, key=lambda turn: turn.role)
    ]
    prefill = ""
    if turns[-1][0] == "assistant":
        prefill = _prefill(request, turns.pop()[1])
    rules = _text(request.system or ())
    messages = [Message(role="system", content=rules)] if rules else []
    for role, blocks in turns:
        messages += _messages(role, blocks)
    if not messages:
        raise ApiError(400, "'messages' needs one that is not the assistant's.", param="messages", code="invalid_value")
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "tools": [_tool(tool) for tool in request.tools or ()],
        "chat_template_kwargs": _template_variables(request),
    }
    if (choice := request.tool_choice) is not None:
        fields |= {"tool_choice": _tool_choice(choice), "parallel_tool_calls": not choice.disable_parallel_tool_use}
    if (schema := request.schema_to_match) is not None:
        wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        fields["response_format"] = JsonSchemaFormat.model_validate(wrapped)
    if isinstance(request, MessagesRequest):
        fields |= {
            "stop": request.stop_sequences,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
        }
    return ChatRequest(**fields), prefill


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


def _messages(role: Literal["system", "user", "assistant"], blocks: Sequence[Block]) -> list[Message]:
    """Of one turn: results of tools are messages of their own, before what the user says to them."""
    if role == "assistant":
        thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        said = Message(role=role, content=_text(blocks), tool_calls=calls or None, reasoning_content=thoughts or None)
        return [said]
    results = [
        Message(role="tool", tool_call_id=block.tool_use_id, content=_result(block))
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    says_more = not results or any(isinstance(block, TextBlock) for block in blocks)
    return [*results, Message(role=role, content=_text(blocks))] if says_more else results


def _result(block: ToolResultBlock) -> str:
    """Chats have no word for a tool that failed, so the result begins with one."""
    text = _text(block.content or ())
    return f"Error: {text}".removesuffix(": ") if block.is_error else text


def _text(blocks: Sequence[Block]) -> str:
    """Blocks are joined by a line break, as a chat's text parts are."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _call(block: ToolUseBlock) -> ToolCall:
    arguments = json.dumps(block.input, ensure_ascii=False)  # laid out as answers are, so that it is found in memory
    return ToolCall(id=block.id, function=CalledFunction(name=block.name, arguments=arguments))


def _tool(tool: CustomTool) -> ToolDefinition:
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return ToolDefinition(type="function", function=function)


def _tool_choice(choice: ToolChoice) -> str | NamedTool:
    if choice.name is not None:
        return NamedTool(type="function", function=FunctionReference(name=choice.name))
    return "required" if choice.type == "any" else choice.type


def _template_variables(request: CountTokensRequest) -> dict[str, Any]:
    """Those by which templates turn thoughts on and off, and make them longer."""
    variables: dict[str, Any] = {}
    if request.thinking is not None:
        variables["enable_thinking"] = request.thinking.type != "disabled"
    if request.output_config is not None and request.output_config.effort is not None:
        variables["reasoning_effort"] = request.output_config.effort
    return variables
