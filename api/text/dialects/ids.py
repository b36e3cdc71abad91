"""The ids of calls."""

import secrets
import string
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


def _short(text: str) -> str:
    """Nine letters and digits for a text: a hash, or the text itself if it already has this form."""
    if len(text) == _SHORT and text.isalnum():
        return text
    return blake2b(text.encode(), digest_size=5).hexdigest()[:_SHORT]
