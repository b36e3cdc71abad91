"""The ids of calls."""

import secrets
import string
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from api.text.dialects.history import Message

_ALPHANUMERICS: Final = string.ascii_letters + string.digits
_SHORT: Final = 9


def call_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHANUMERICS) for _ in range(24))


def short_id() -> str:
    """An id for templates that accept no others."""
    return _short(call_id())


def with_short_ids(message: Message) -> Message:
    """The message with short ids of calls, the same one for the same id everywhere."""
    if "tool_call_id" in message:
        return message | {"tool_call_id": _short(message["tool_call_id"])}
    if "tool_calls" in message:
        return message | {"tool_calls": [call | {"id": _short(call["id"])} for call in message["tool_calls"]]}
    return message


def with_names_in_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with ids such as `functions.NAME:0` of calls, which are counted through the conversation."""
    ids: dict[str, str] = {}
    named: list[Message] = []
    for message in messages:
        if "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                ids[call["id"]] = f"functions.{call['function']['name']}:{len(ids)}"
                calls.append(call | {"id": ids[call["id"]]})
            message = message | {"tool_calls": calls}
        elif (call_id := message.get("tool_call_id")) in ids:
            message = message | {"tool_call_id": ids[str(call_id)]}
        named.append(message)
    return named


def _short(text: str) -> str:
    """Nine letters and digits for a text: a hash, or the text itself if it already has this form."""
    if len(text) == _SHORT and text.isalnum():
        return text
    return blake2b(text.encode(), digest_size=5).hexdigest()[:_SHORT]
