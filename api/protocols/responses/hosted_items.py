"""Items of hosted tools. The server does not have these tools, but other servers' conversations contain their items."""

import json
from collections.abc import Iterable
from typing import Any, Final

from api.protocols.hosted import media_type, omitted

_CALLS: Final = {
    "apply_patch_call": ("operation",),
    "computer_call": ("actions", "action"),
    "local_shell_call": ("action",),
    "shell_call": ("action",),
}
"""Calls whose results the client sent, and the fields with their arguments. They become calls of functions."""
_OUTPUTS: Final = ("apply_patch_call_output", "computer_call_output", "local_shell_call_output", "shell_call_output")
"""Their results, which become results of functions."""
LEFT_OUT: Final = (
    "additional_tools",
    "code_interpreter_call",
    "compaction",
    "compaction_summary",
    "compaction_trigger",
    "configuration_update",
    "context_compaction",
    "file_search_call",
    "ghost_snapshot",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "program_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)
"""Items that become nothing: what came out of them is in the answers that follow."""
_MESSAGE: Final = "agent_message"
"""A message of another agent, which becomes a user's."""
ITEM_TYPES: Final = (*_CALLS, *_OUTPUTS, *LEFT_OUT, _MESSAGE)


def as_function_item(item: dict[str, Any]) -> dict[str, Any] | None:
    """The item as a call of a function, its result or a message, without an id; None if it is left out."""
    kind, call_id = item["type"], str(item.get("call_id") or item.get("id") or "")
    if kind in _CALLS:
        given: Any = next((item[field] for field in _CALLS[kind] if item.get(field) is not None), {})
        arguments = given if isinstance(given, dict) else {"actions": given}
        return {
            "type": "function_call",
            "status": "completed",
            "call_id": call_id,
            "name": kind.removesuffix("_call"),
            "arguments": json.dumps(arguments, ensure_ascii=False),
        }
    if kind in _OUTPUTS:
        output = item.get("output")
        return {
            "type": "function_call_output",
            "status": "completed",
            "call_id": call_id,
            "output": output if isinstance(output, str) else "\n".join(_texts(output)),
        }
    if kind == _MESSAGE:
        text = "\n".join(_texts(item.get("content")))
        return {
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": text}],
        }
    return None


def media_in(item: dict[str, Any]) -> list[str]:
    """The types of the content of a result that is not text."""
    output = item.get("output")
    parts = output if isinstance(output, list) else [output]
    return [media for part in parts if (media := media_type(part)) is not None]


def _texts(output: Any) -> Iterable[str]:
    """The texts of a result: of a screenshot, or of commands that have run."""
    for part in output if isinstance(output, list) else [output]:
        if (media := media_type(part)) is not None:
            yield omitted(media)
        elif isinstance(part, dict):
            yield from (text for key in ("text", "stdout", "stderr") if isinstance(text := part.get(key), str) and text)
