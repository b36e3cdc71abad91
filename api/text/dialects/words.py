"""Tools, calls and results as plain text, for templates that do not write them themselves."""

import json
from collections.abc import Sequence
from typing import Any, Final

from api.text.dialects.common import HERMES
from api.text.dialects.history import Message, object_of
from api.text.dialects.syntax import Calls
from api.text.dialects.tools import Tool
from api.text.dialects.writer import pieces, written
from api.text.guard import Mark, Pieces

CALLS: Final = HERMES
"""What the prompt asks for if the template shows nothing."""


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
    turns.insert(0, {"role": "system", "content": f"{system}\n\n{_instructions(tools, calls)}".lstrip()})
    return _joined(turns)


def _joined(turns: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in turns:
        if (
            joined
            and joined[-1]["role"] == message["role"]
            and "tool_calls" not in message
            and message["role"] != "tool"
        ):
            message = message | {"content": _lines(joined.pop()["content"], message["content"])}
        joined.append(message)
    return joined


def _lines(*texts: str | Pieces) -> str | Pieces:
    """The texts, one below the other."""
    if all(isinstance(text, str) for text in texts):
        return "\n".join(map(str, texts))
    parts: list[str] = []
    for text in texts:
        parts += [Mark("\n")] if parts else []
        parts += [text] if isinstance(text, str) else text
    return Pieces(parts)


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
    return {"role": message["role"], "content": _lines(*texts)}


def _exactly(function: dict[str, Any]) -> str:
    """A call with its arguments as the model wrote them, so that the prefix is found in the KV cache."""
    name = json.dumps(function["name"])
    return f'<tool_call>\n{{"name": {name}, "arguments": {function["arguments"]}}}\n</tool_call>'


def _instructions(tools: Sequence[Tool], calls: Calls) -> str:
    listed = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    if calls == CALLS:
        how = (
            "To call one, answer with its name and arguments as JSON between tags:\n"
            '<tool_call>\n{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>\n'
        )
    else:
        how = f"To call one, answer in this form:\n{written(calls, [('function', {'parameter': 'value'})])}\n"
    return f"You can call these functions:\n{listed}\n\n{how}What it returns comes back between <tool_response> tags."
