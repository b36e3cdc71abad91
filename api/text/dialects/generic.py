"""Models that were not taught to call tools."""

import json
from collections.abc import Sequence
from typing import Any

from api.text.dialects.dialect import Message
from api.text.dialects.hermes import Hermes
from api.text.dialects.tools import Tool


class Generic(Hermes):
    """They are told how, in words; their calls look like Hermes'."""

    name = "generic"

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Tools are listed in the system message; calls and their results become words of roles that every model knows.

        Messages of one role in a row are joined, as some templates want the roles to alternate.
        """
        if not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
            return list(messages), None
        said = [_in_words(message) for message in messages]
        if tools:
            system = said.pop(0)["content"] if said and said[0]["role"] in ("system", "developer") else ""
            said.insert(0, {"role": "system", "content": f"{system}\n\n{_manual(tools)}".lstrip()})
        joined: list[Message] = []
        for message in said:
            if joined and joined[-1]["role"] == message["role"]:
                message = message | {"content": f"{joined.pop()['content']}\n{message['content']}"}
            joined.append(message)
        return joined, None


def _in_words(message: Message) -> Message:
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


def _manual(tools: Sequence[Tool]) -> str:
    listed = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\n"
        "To call one, answer with its name and arguments as JSON between tags:\n"
        '<tool_call>\n{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>\n'
        "What it returns comes back between <tool_response> tags."
    )
