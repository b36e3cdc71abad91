"""Tools, calls and results as plain text, for templates that do not write them themselves."""

import json
from collections.abc import Sequence
from typing import Any, Final

from api.text.dialects.common import HERMES
from api.text.dialects.history import Message, object_of
from api.text.dialects.syntax import Calls
from api.text.dialects.tools import Tool
from api.text.dialects.writer import pieces
from api.text.guard import Pieces, joined

CALLS: Final = HERMES
"""What the prompt asks for if the template shows nothing."""
_EXAMPLE: Final = '<tool_call>\n{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>'


def with_written_calls(messages: Sequence[Message], calls: Calls, *, keeps_results: bool = False) -> list[Message]:
    """Calls become assistant text and results become user text, unless the template writes the results itself.

    Consecutive messages of one role are joined, because some templates require alternating roles.
    """
    if not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        return list(messages)
    return _joined(
        [message if keeps_results and message["role"] == "tool" else _as_text(message, calls) for message in messages]
    )


def with_instructions(messages: Sequence[Message], tools: Sequence[Tool], calls: Calls) -> list[Message]:
    """List the tools in the system message, and explain how to call them."""
    turns = list(messages)
    system = turns.pop(0)["content"] if turns and turns[0]["role"] in ("system", "developer") else ""
    texts = [system, _instructions(tools, calls)] if system else [_instructions(tools, calls)]
    turns.insert(0, {"role": "system", "content": joined("\n\n", texts)})
    return _joined(turns)


def _joined(messages: Sequence[Message]) -> list[Message]:
    """The conversation with consecutive texts of one role in one message."""
    turns: list[Message] = []
    for message in messages:
        is_text = "tool_calls" not in message and message["role"] != "tool"
        if is_text and turns and turns[-1]["role"] == message["role"]:
            message = message | {"content": joined("\n", [turns.pop()["content"], message["content"]])}
        turns.append(message)
    return turns


def _as_text(message: Message, calls: Calls) -> Message:
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    texts: list[str | Pieces] = [content] if content else []
    if calls == CALLS:
        texts += [_exactly(call["function"]) for call in message["tool_calls"]]
    else:
        made = [(each["function"]["name"], object_of(each["function"]["arguments"])) for each in message["tool_calls"]]
        texts.append(pieces(calls, made))
    return {"role": message["role"], "content": joined("\n", texts)}


def _exactly(function: dict[str, Any]) -> str:
    """A call with its arguments as the model wrote them, so that the prefix is found in the KV cache."""
    name = json.dumps(function["name"])
    return f'<tool_call>\n{{"name": {name}, "arguments": {function["arguments"]}}}\n</tool_call>'


def _instructions(tools: Sequence[Tool], calls: Calls) -> Pieces:
    listed = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    if calls == CALLS:
        how = "To call one, answer with its name and arguments as JSON between tags:"
        example = Pieces([_EXAMPLE])
    else:
        how = "To call one, answer in this form:"
        example = pieces(calls, [("function", {"parameter": "value"})])
    end = "What it returns comes back between <tool_response> tags."
    return Pieces([f"You can call these functions:\n{listed}\n\n{how}\n", *example, f"\n{end}"])
