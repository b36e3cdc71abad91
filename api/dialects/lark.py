"""Pieces of grammars in llguidance's variant of Lark."""

import json
from collections.abc import Callable
from typing import Any, Final

TokenId = Callable[[str], int | None]
"""The id of a special token by its text; None if the vocabulary has none."""

ANY_TEXT: Final = r"/(.|\n)*/"
"""Any text. Special tokens are no text."""
COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is laid out: as models have read it most. Free white space would let a small model go on for ever."""


def json_rule(schema: dict[str, Any]) -> str:
    """What matches a JSON schema."""
    return f"%json {json.dumps(schema | {'x-guidance': COMPACT}, ensure_ascii=False)}"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def marker(text: str, token_id: TokenId) -> str:
    """A special token where the vocabulary has it, else its text."""
    token = token_id(text)
    return literal(text) if token is None else f"<[{token}]>"


def text_until(rule: str, text: str, token_id: TokenId) -> str:
    """The lines of a rule: any text up to and including this marker."""
    token = token_id(text)
    if token is None:
        return f"{rule}[lazy]: {ANY_TEXT} {literal(text)}\n"
    return f"{rule}: {rule.upper()}_TEXT <[{token}]>\n{rule.upper()}_TEXT: {ANY_TEXT}\n"
