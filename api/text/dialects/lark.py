"""Pieces of grammars in llguidance's variant of Lark."""

import json
from collections.abc import Callable, Iterable
from typing import Final

TokenId = Callable[[str], int | None]
"""The id of a special token by its text; None if the vocabulary has none."""

ANY_TEXT: Final = r"/(.|\n)*/"
"""Any text without special tokens."""
_SYNTAX: Final = frozenset("\\.+*?()|[]{}^$#&-~/")
"""The ASCII characters that a regular expression may read as syntax."""


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def one_of(texts: Iterable[str]) -> str:
    """One regular expression for a choice of texts. Among thousands of separate literals llguidance gives up."""
    return f"/{'|'.join(''.join(map(_escaped, text)) for text in texts)}/"


def _escaped(char: str) -> str:
    if char.isalnum():
        return char
    return f"\\{char}" if char in _SYNTAX else f"\\x{{{ord(char):x}}}" if char.isspace() or ord(char) < 32 else char


def marker(text: str, token_id: TokenId) -> str:
    """A special token if the vocabulary has it, else its text."""
    token = token_id(text)
    return literal(text) if token is None else f"<[{token}]>"


def text_until(rule: str, text: str, token_id: TokenId) -> str:
    """The lines of a rule for any text up to and including this marker."""
    token = token_id(text)
    if token is None:
        return f"{rule}[lazy]: {ANY_TEXT} {literal(text)}\n"
    return f"{rule}: {rule.upper()}_TEXT <[{token}]>\n{rule.upper()}_TEXT: {ANY_TEXT}\n"
