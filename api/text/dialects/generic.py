"""The dialect of models that are not trained for tool calls."""

import json
from collections.abc import Sequence
from typing import Any

from api.text.dialects.dialect import Message
from api.text.dialects.hermes import Hermes
from api.text.dialects.tools import Tool


class Generic(Hermes):
    """The system message explains how to call a tool. Calls have Hermes' syntax."""

    name = "generic"

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """List the tools in the system message. Calls become assistant text and results become user text.

        Consecutive messages of one role are joined, because some templates require alternating roles.
        """
        if not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
            return list(messages), None
        turns = [_as_text(message) for message in messages]
        if tools:
            system = turns.pop(0)["content"] if turns and turns[0]["role"] in ("system", "developer") else ""
            turns.insert(0, {"role": "system", "content": f"{system}\n\n{_instructions(tools)}".lstrip()})
        joined: list[Message] = []
        for message in turns:
            if joined and joined[-1]["role"] == message["role"]:
                message = message | {"content": f"{joined.pop()['content']}\n{message['content']}"}
            joined.append(message)
        return joined, None


def _as_text(message: Message) -> Message:
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}'
        "\n</tool_call>"
        for call in message["tool_calls"]
    ]
    return {"role": message["role"], "content": "\n".join([content, *calls] if content else calls)}


def _instructions(tools: Sequence[Tool]) -> str:
    listed = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\n"
        "To call one, answer with its name and arguments as JSON between tags:\n"
        '<tool_call>\n{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>\n'
        "What it returns comes back between <tool_response> tags."
    )
