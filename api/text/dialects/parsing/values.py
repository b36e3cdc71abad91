"""Readers of values in an answer, one character at a time. They convert them to JSON text."""

import ast
import json
from collections.abc import Mapping
from typing import Any, Final

from api.text.dialects.kinds import Kinds, kind_of

_ENDS: Final = frozenset(",]}) \t\r\n")
"""What ends a number or a word."""


class JsonScanner:
    """Finds the end of one JSON value. White space before it is not part of it."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, character: str) -> bool:
        """Whether the character belongs to the value. Once it is `done`, none does."""
        if self.done:
            return False
        if not self.text and character.isspace():
            return True
        if self.text and not self._depth and not self._in_string and character in _ENDS:
            self.done = True
            return False
        self.text += character
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
            self.done = not self._in_string and not self._depth
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        return True


class LiteralReader:
    """Converts one value in a notation like JSON to JSON: Python's literals, or Gemma's with bare keys."""

    def __init__(self, quotes: tuple[str, ...], *, escapes: bool) -> None:
        """`quotes`: what strings are between. `escapes`: whether a backslash escapes characters in them."""
        self._quotes = quotes
        self._escapes = escapes
        self._closers: list[str] = []
        self._quote = ""
        """The quote that ends the string that is being read; empty outside of strings."""
        self._held = ""
        self.done = False

    def push(self, character: str) -> tuple[str, bool]:
        """The JSON text that becomes certain, and whether the character belongs to the value."""
        if self._quote:
            return self._in_string(character), True
        self._held += character
        if any(quote.startswith(self._held) for quote in self._quotes):
            if self._held in self._quotes:
                self._quote, self._held = self._held, ""
                return '"', True
            return "", True
        if character not in _ENDS and character not in ":{[(":
            return "", True
        word, self._held = self._held[:-1], ""
        text = self._word(word, is_key=character == ":") if word.strip() else ""
        return self._structure(text, character, has_word=bool(text))

    def finish(self) -> str:
        """The JSON text of a word at the end of an answer."""
        word, self._held = self._held, ""
        if self._quote or self._closers or not word.strip():
            return ""
        self.done = True
        return self._word(word, is_key=False)

    def _structure(self, text: str, character: str, *, has_word: bool) -> tuple[str, bool]:
        if character in "{[(":
            self._closers.append("}" if character == "{" else "]")
            return text + ("{" if character == "{" else "["), True
        if not self._closers:
            if character.isspace() and not has_word:
                return "", True
            self.done = True
            return text or "null", False
        if character in "]})":
            text += self._closers.pop()
            self.done = not self._closers
        elif character in ",:":
            text += f"{character} "
        return text, True

    def _in_string(self, character: str) -> str:
        self._held += character
        if self._escapes and self._held.startswith("\\"):
            return self._escape()
        if self._held == self._quote:
            self._quote, self._held = "", ""
            self.done = not self._closers
            return '"'
        if self._quote.startswith(self._held):
            return ""
        text, self._held = self._held[0], self._held[1:]
        rest, self._held = self._held, ""
        return quoted(text) + "".join(self._in_string(each) for each in rest)

    def _escape(self) -> str:
        held = self._held
        size = {"x": 4, "u": 6, "U": 10}.get(held[1:2], 2)
        if len(held) < size:
            return ""
        self._held = ""
        if held[1] == "u":
            return held if all(each in "0123456789abcdefABCDEF" for each in held[2:]) else quoted(held)
        try:
            return (
                quoted(str(ast.literal_eval(f'"{held}"'))) if held[1] not in "\n'\"/" else quoted(held[1].strip("\n"))
            )
        except (SyntaxError, ValueError):
            return quoted(held)

    @staticmethod
    def _word(word: str, *, is_key: bool) -> str:
        word = word.strip()
        if is_key:
            return json.dumps(word, ensure_ascii=False)
        for read in (json.loads, ast.literal_eval):
            try:
                json.dumps(value := read(word), allow_nan=False)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            return word if read is json.loads else json.dumps(value, ensure_ascii=False)
        return json.dumps(word, ensure_ascii=False)


def quoted(text: str) -> str:
    """The text as it is inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def typed(text: str, kinds: Kinds, kind: str = "") -> str:
    """The JSON text of a raw value: a string if its types say so or if it is no JSON of another type.

    `kind`: the JSON type that the answer itself gives; empty if it gives none.
    """
    if kind == "string" or (not kind and kinds == {"string"}):
        return json.dumps(text, ensure_ascii=False)
    for read in (json.loads, ast.literal_eval):
        try:
            value: Any = read(text.strip())
            written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if kind or kind_of(value) in kinds:
            return text.strip() if read is json.loads else written
    return json.dumps(text, ensure_ascii=False)


def nested_schema(schema: Any, key: str) -> Mapping[str, Any]:
    """The schema of a member or, with the key `item`, of an item; empty if the schema has none."""
    options = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())] if isinstance(schema, Mapping) else []
    for option in options:
        inner = option.get("properties", {}).get(key) if isinstance(option, Mapping) else None
        if inner is None and key == "item" and isinstance(option, Mapping):
            inner = option.get("items")
        if isinstance(inner, Mapping):
            return inner
    return {}
