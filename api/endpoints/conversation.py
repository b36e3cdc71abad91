"""Items of the Responses API as the messages of a chat."""

from collections.abc import Iterable

from api.schemas.chat import CalledFunction, Message, ToolCall
from api.schemas.response_items import Item
from api.schemas.response_tools import full_name


def as_messages(items: Iterable[Item]) -> list[Message]:
    """The messages of the same conversation: one for all that an assistant thought, said and called in a row."""
    messages: list[Message] = []
    turn: _Turn | None = None
    for item in items:
        if turn is not None and not turn.takes(item):
            messages += turn.messages()
            turn = None
        if _is_of_assistant(item):
            turn = turn or _Turn()
            turn.add(item)
        else:
            messages.append(_message(item))
    return messages + (turn.messages() if turn else [])


def _is_of_assistant(item: Item) -> bool:
    return item["type"] in ("reasoning", "function_call") or item.get("role") == "assistant"


class _Turn:
    """What an assistant does before somebody else has the word."""

    def __init__(self) -> None:
        self._thoughts = ""
        self._content: str | None = None
        self._calls: list[ToolCall] = []

    def takes(self, item: Item) -> bool:
        """Whether an item belongs to the same message."""
        match item["type"]:
            case "reasoning":
                return not self._thoughts and self._content is None and not self._calls
            case "function_call":
                return True
            case "message" if item["role"] == "assistant":
                return self._content is None or bool(self._calls)
        return False

    def add(self, item: Item) -> None:
        match item["type"]:
            case "reasoning":
                self._thoughts = _text(item["content"] or item["summary"])
            case "function_call":
                function = CalledFunction(name=_name(item), arguments=item["arguments"])
                self._calls.append(ToolCall(id=item["call_id"], function=function))
            case "message":
                self._content = (self._content or "") + _text(item["content"])

    def messages(self) -> list[Message]:
        """None for thoughts that were not told."""
        if not self._thoughts and self._content is None and not self._calls:
            return []
        message = Message(
            role="assistant",
            content=self._content,
            tool_calls=self._calls or None,
            reasoning_content=self._thoughts or None,
        )
        return [message]


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
