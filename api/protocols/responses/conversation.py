"""Items of the Responses API as the messages of a chat."""

from collections.abc import Iterable
from itertools import groupby

from api.protocols.conversation import CalledFunction, Message, ToolCall
from api.protocols.responses.items import Item
from api.protocols.responses.tools import full_name


def as_messages(items: Iterable[Item]) -> list[Message]:
    """The messages of the same conversation: one for all that an assistant thought, said and called in a row.

    Many templates refuse two of an assistant's in a row.
    """
    messages: list[Message] = []
    for is_of_assistant, turn in groupby(items, key=_is_of_assistant):
        messages += _answer(turn) if is_of_assistant else map(_message, turn)  # noqa: B031 - it is used once
    return messages


def _is_of_assistant(item: Item) -> bool:
    return item["type"] in ("reasoning", "function_call") or item.get("role") == "assistant"


def _answer(turn: Iterable[Item]) -> list[Message]:
    """None for thoughts that were not told."""
    thoughts: list[str] = []
    said: list[str] = []
    calls: list[ToolCall] = []
    follows_call = False
    for item in turn:
        match item["type"]:
            case "reasoning":
                thoughts.append(_text(item["content"] or item["summary"]))
            case "function_call":
                function = CalledFunction(name=_name(item), arguments=item["arguments"])
                calls.append(ToolCall(id=item["call_id"], function=function))
            case "message":
                if said and not follows_call:  # words around a call were one text
                    said.append("\n")
                said.append(_text(item["content"]))
        follows_call = item["type"] == "function_call"
    thought = "\n".join(filter(None, thoughts))
    if not thought and not said and not calls:
        return []
    content = "".join(said) if said else None
    return [Message(role="assistant", content=content, tool_calls=calls or None, reasoning_content=thought or None)]


def _message(item: Item) -> Message:
    if item["type"] == "function_call_output":
        output = item["output"]
        content = output if isinstance(output, str) else _text(output)
        name = _name(item) if "name" in item else None
        return Message(role="tool", content=content, tool_call_id=item["call_id"], name=name)
    return Message(role=item["role"], content=_text(item["content"]))


def _name(item: Item) -> str:
    """Of a function, as the model knows it."""
    return full_name(item.get("namespace"), item["name"])


def _text(parts: Iterable[Item]) -> str:
    """Joined as the parts of a chat message are."""
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts)
