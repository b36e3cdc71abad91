"""Reasoning in an assistant's message that a client sends back, in the forms that servers and clients give it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from api.protocols.kinds import type_of

PART_TYPES: Final = ("thinking", "reasoning", "redacted_thinking")
"""Types of content parts that hold reasoning. The text of the last one is encrypted."""
_TEXTS: Final = ("thinking", "reasoning", "text", "summary")
"""Fields in which a part or a detail may have its text, as a string or as a list of text parts."""


def text_of(part: Mapping[str, Any]) -> str:
    """The text of a content part (Mistral, LangChain) or of an entry of `reasoning_details` (OpenRouter).

    Encrypted reasoning has no text. Raises ValueError for a text that is neither a string nor a list of text parts.
    """
    name = next((name for name in _TEXTS if part.get(name)), None)
    text = "" if name is None else part[name]
    if isinstance(text, list) and all(isinstance(inner, dict) and isinstance(inner.get("text"), str) for inner in text):
        return joined(inner["text"] for inner in text)
    if not isinstance(text, str):
        raise ValueError(f"reasoning must have a string {name!r}")
    return text


def joined(texts: Iterable[str]) -> str:
    """The texts that are not empty, joined by a line break as the parts of a message are."""
    return "\n".join(filter(None, texts))


def separated(message: dict[str, Any]) -> dict[str, Any]:
    """The message without content parts that hold reasoning. Their text becomes `reasoning`, unless it has one.

    Raises ValueError for such a part without a text.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return message
    thoughts = [part for part in content if isinstance(part, dict) and type_of(part) in PART_TYPES]
    if not thoughts:
        return message
    text = joined(map(text_of, thoughts))
    others = [part for part in content if type_of(part) not in PART_TYPES]
    return message | {"content": others, "reasoning": message.get("reasoning") or text or None}
