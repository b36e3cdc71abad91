"""Pieces of grammars in llguidance's variant of Lark."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from llguidance import LLMatcher

TokenId = Callable[[str], int | None]
"""The id of a special token by its text; None if the vocabulary has none."""

ANY_TEXT: Final = r"/(.|\n)*/"
"""Any text without special tokens."""
COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The JSON layout that models know best. With free white space a small model might generate it without end."""
LENIENT: Final = COMPACT | {"lenient": True, "coerce_one_of": True}
"""Ignores the keywords of a schema that llguidance does not support."""
_SHOWN: Final = re.compile(r"^ +\d+ \| ", re.MULTILINE)
"""The start of the grammar's lines in an error message of llguidance."""


def json_rule(schema: dict[str, Any]) -> str:
    """A rule that matches a JSON schema."""
    return _json(schema, COMPACT)


def hint_rule(schema: dict[str, Any]) -> str:
    """A rule that matches the supported part of a JSON schema; any object if llguidance rejects that too."""
    rule = _json(schema, LENIENT)
    return json_rule({"type": "object"}) if problem(rule) else rule


@lru_cache(1024)
def problem(rule: str) -> str:
    """Why llguidance rejects a self-contained rule, without the position; empty if it accepts the rule."""
    report = LLMatcher.validate_grammar(f"start: {rule}")
    return " ".join(_SHOWN.split(report, maxsplit=1)[0].split()[2:])


def _json(schema: dict[str, Any], options: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema | {'x-guidance': options}, ensure_ascii=False)}"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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
