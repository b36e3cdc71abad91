"""Token ids of chats without a model: as many tokens as SmolLM2's template gives to texts of `bench.words`."""

from collections.abc import Sequence
from typing import Final

from bench.records import Message
from bench.words import WORDS

_START, _END, _NEWLINE = 49_001, 49_002, 49_003
_ROLES: Final = {"system": [49_004], "user": [49_005], "assistant": [49_006, 49_007]}
_WORD_IDS: Final = {word: 2000 + index for index, word in enumerate(WORDS)}
"""Above the ids that the virtual runner samples."""
_DEFAULT_SYSTEM: Final = list(range(49_100, 49_116))
"""The text of the system message that the template adds to a conversation without one."""


def opening(messages: Sequence[Message]) -> list[int]:
    """The prompt of a conversation's first turn."""
    system = [] if messages[0]["role"] == "system" else _message("system", _DEFAULT_SYSTEM)
    return [*system, *_messages(messages), *_header("assistant")]


def following(messages: Sequence[Message]) -> list[int]:
    """What a further turn adds after the answer."""
    return [_END, _NEWLINE, *_messages(messages), *_header("assistant")]


def _messages(messages: Sequence[Message]) -> list[int]:
    return [
        token
        for message in messages
        for token in _message(message["role"], [_WORD_IDS[word] for word in message["content"].split()])
    ]


def _message(role: str, content: Sequence[int]) -> list[int]:
    return [*_header(role), *content, _END, _NEWLINE]


def _header(role: str) -> list[int]:
    return [_START, *_ROLES[role], _NEWLINE]
