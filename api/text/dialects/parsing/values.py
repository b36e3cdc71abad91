"""Readers of values in an answer, one character at a time. They convert them to JSON text."""

import ast
import json
from collections.abc import Mapping
from typing import Any, Final

from api.text.dialects.kinds import Kinds, kind_of

_ENDS: Final = frozenset(",]}) \t\r\n")
"""What ends a number or a word."""
_HEXADECIMAL: Final = frozenset("0123456789abcdefABCDEF")
_OCTAL: Final = frozenset("01234567")
_ESCAPES: Final = {"x": (4, _HEXADECIMAL), "u": (6, _HEXADECIMAL), "U": (10, _HEXADECIMAL)} | dict.fromkeys(
    _OCTAL, (4, _OCTAL)
)
"""The greatest size of an escape, with its backslash, and its digits. All others have two characters."""
_WORDS: Final = {"t": "rue", "f": "alse", "n": "ull"}
_DIGIT: Final = ("0", "1")
_EXPONENT: Final = {"e": "e", "E": "e"}
_NUMBER: Final[Mapping[str, Mapping[str, str]]] = {
    "begin": {"-": "-", "0": "0", "1": "1"},
    "-": {"0": "0", "1": "1"},
    "0": {".": "."} | _EXPONENT,
    "1": dict.fromkeys(_DIGIT, "1") | {".": "."} | _EXPONENT,
    ".": dict.fromkeys(_DIGIT, ".1"),
    ".1": dict.fromkeys(_DIGIT, ".1") | _EXPONENT,
    "e": dict.fromkeys(_DIGIT, "e1") | {"+": "e+", "-": "e+"},
    "e+": dict.fromkeys(_DIGIT, "e1"),
    "e1": dict.fromkeys(_DIGIT, "e1"),
}
"""The parts of a number, and the part after each character. A 1 stands for all digits but 0."""
_NUMBER_ENDS: Final = frozenset({"0", "1", ".1", "e1"})
"""The parts that a number may end with."""


class JsonScanner:
    """Checks one JSON value and finds its end. White space before it is not part of it."""

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        """Whether this is no JSON. The last character then does not belong to the value."""
        self._expected = "value"
        """value, key, colon or comma; `first`: a key or the end of an object; `item`: a value or the end of a list."""
        self._closers: list[str] = []
        self._is_key = False
        self._in_string = False
        self._escape = ""
        """The characters of an escape that are expected yet: one of these, or so many hexadecimal digits."""
        self._word = ""
        """The rest of a word that is being read."""
        self._number = ""
        """The part of a number that is being read."""

    @property
    def in_string(self) -> bool:
        return self._in_string

    def push(self, character: str) -> bool:
        """Whether the character belongs to the value. Once it is `done`, none does."""
        if self.done or self.failed:
            return False
        if self._in_string:
            self._string(character)
        elif self._word:
            self.failed = character != self._word[0]
            self._word = self._word[1:]
            self._end_value(is_ended=not self._word)
        elif self._number:
            return self._digit(character)
        elif not character.isspace():
            self._begin(character)
        return not self.failed

    def _string(self, character: str) -> None:
        if self._escape == "\\":
            self.failed = character not in '"\\/bfnrtu'
            self._escape = "uuuu" if character == "u" else ""
        elif self._escape:
            self.failed = character not in _HEXADECIMAL
            self._escape = self._escape[1:]
        elif character == "\\":
            self._escape = character
        elif character == '"':
            self._in_string = False
            if self._is_key:
                self._expected = "colon"
            else:
                self._end_value()

    def _digit(self, character: str) -> bool:
        following = _NUMBER[self._number].get("1" if character in "123456789" else character)
        if following is not None:
            self._number = following
            return True
        self.failed = self._number not in _NUMBER_ENDS
        self._number = ""
        self._end_value()
        return not self.done and self.push(character)

    def _begin(self, character: str) -> None:
        expected = self._expected
        if character in "]}" and self._closers[-1:] == [character] and expected in ("comma", "first", "item"):
            self.failed = expected == "item" and character == "}"
            self._closers.pop()
            self._end_value()
        elif expected == "comma":
            self.failed = character != ","
            self._expected = "key" if self._closers[-1] == "}" else "value"
        elif expected == "colon":
            self.failed, self._expected = character != ":", "value"
        elif expected in ("key", "first"):
            self.failed = character != '"'
            self._in_string = self._is_key = True
        else:
            self._begin_value(character)

    def _begin_value(self, character: str) -> None:
        self._is_key = False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._closers.append("}" if character == "{" else "]")
            self._expected = "first" if character == "{" else "item"
        elif character in _WORDS:
            self._word = _WORDS[character]
        elif number := _NUMBER["begin"].get("1" if character in "123456789" else character):
            self._number = number
        else:
            self.failed = True

    def _end_value(self, *, is_ended: bool = True) -> None:
        if is_ended and not self.failed:
            self._expected = "comma"
            self.done = not self._closers


class LiteralReader:
    """Converts one value in a notation like JSON to JSON: Python's literals, or Gemma's with bare keys."""

    def __init__(self, quotes: tuple[str, ...], ends: frozenset[str], *, escapes: bool) -> None:
        """`quotes`: what strings are between. `escapes`: whether a backslash escapes characters in them.

        `ends`: characters that end the whole value if it is a number or a word.
        """
        self._quotes = quotes
        self._ends = ends
        self._escapes = escapes
        self._closers: list[str] = []
        self._quote = ""
        """The quote that ends the string that is being read; empty outside of strings."""
        self._held = ""
        self._comma = ""
        """A comma that is written before the next value. Python allows one after the last."""
        self._awaits_key = False
        """Whether the next word is a key. White space does not end it."""
        self._has_ended = False
        """Whether a value inside of another one has ended. A comma, a colon or the end of the outer one must follow."""
        self.done = False
        self.failed = False

    def push(self, character: str) -> tuple[str, bool]:
        """The JSON text that becomes certain, and whether the character belongs to the value."""
        if self._quote:
            return self._in_string(character), True
        if self._has_ended and not character.isspace() and character not in ",:]})":
            self.failed = True
            return "", True
        self._held += character
        if any(quote.startswith(self._held) for quote in self._quotes):
            if self._held in self._quotes:
                self._quote, self._held = self._held, ""
                return self._separated('"'), True
            return "", True
        ends_all = character in self._ends and not self._closers and bool(self._held[:-1].strip())
        if character not in _ENDS and character not in ":{[(" and not ends_all:
            return "", True
        if self._awaits_key and character.isspace() and self._held.strip():
            return "", True
        word, self._held = self._held[:-1], ""
        text = self._separated(self._word(word, is_key=character == ":")) if word.strip() else ""
        if ends_all:
            self.done = True
            return text, False
        return self._structure(text, character, has_word=bool(text))

    def finish(self) -> str:
        """The JSON text of a word at the end of an answer."""
        word, self._held = self._held, ""
        if self._quote or self._closers or not word.strip():
            return ""
        self.done = True
        return self._word(word, is_key=False)

    def _separated(self, text: str) -> str:
        comma, self._comma = self._comma, ""
        return comma + text

    def _structure(self, text: str, character: str, *, has_word: bool) -> tuple[str, bool]:
        self._has_ended = character in "]})" or (character.isspace() and (has_word or self._has_ended))
        if not character.isspace():
            self._awaits_key = character == "{" or (character == "," and self._closers[-1:] == ["}"])
        if character in "{[(":
            self.failed = has_word
            self._closers.append({"{": "}", "[": "]", "(": ")"}[character])
            return text + self._separated("{" if character == "{" else "["), True
        if not self._closers:
            if character.isspace() and not has_word:
                return "", True
            self.done = True
            return text or "null", False
        if character in "]})":
            self.failed = self._closers.pop() != character
            text += "}" if character == "}" else "]"
            self._comma = ""
            self.done = not self._closers
        elif character == ",":
            text, self._comma = text + self._comma, ", "
        elif character == ":":
            text += ": "
        return text, True

    def _in_string(self, character: str) -> str:
        self._held += character
        if self._escapes and self._held.startswith("\\"):
            return self._escape()
        if self._held == self._quote:
            self._quote, self._held = "", ""
            self._has_ended, self.done = True, not self._closers
            return '"'
        if self._quote.startswith(self._held):
            return ""
        text, self._held = self._held[0], self._held[1:]
        rest, self._held = self._held, ""
        return quoted(text) + "".join(self._in_string(each) for each in rest)

    def _escape(self) -> str:
        held = self._held
        size, digits = _ESCAPES.get(held[1:2], (2, _HEXADECIMAL))
        if len(held) > 2 and held[-1] not in digits:  # it is too short, as in 'C:\\x'
            self._held = ""
            return _unescaped(held[:-1]) + self._in_string(held[-1])
        if len(held) < size:
            return ""
        self._held = ""
        return _unescaped(held)

    @staticmethod
    def _word(word: str, *, is_key: bool) -> str:
        word = word.strip()
        if is_key:
            return json.dumps(word, ensure_ascii=False)
        written = _json_of(word)
        return json.dumps(word, ensure_ascii=False) if written is None else written[0]


def _unescaped(escape: str) -> str:
    """What an escape stands for, as it is inside of a JSON string. What is no escape stays as it is written."""
    if escape[1] == "u" and len(escape) == 6:  # it may be one half of a pair
        return escape
    if escape[1] in "\n'\"/":
        return quoted(escape[1].strip("\n"))
    try:
        return quoted(str(ast.literal_eval(f'"{escape}"')))
    except (SyntaxError, ValueError):
        return quoted(escape)


def _json_of(text: str) -> tuple[str, Any] | None:
    """The JSON text and the value of a text in JSON's or in Python's notation; None if it is neither."""
    text = text.strip()
    try:
        return text, json.loads(text, parse_constant=_refuse, parse_int=float)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
        return json.dumps(value, ensure_ascii=False, allow_nan=False), value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    """JSON has no infinite numbers. A finite one may be too large for Python and stays as it is written."""
    raise ValueError(constant)


def quoted(text: str) -> str:
    """The text as it is inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def typed(text: str, kinds: Kinds, kind: str = "") -> str:
    """The JSON text of a raw value: a string if its types say so or if it is no JSON of another type.

    `kind`: the JSON type that the answer itself gives; empty if it gives none.
    """
    if kind == "string" or (not kind and kinds == {"string"}):
        return json.dumps(text, ensure_ascii=False)
    written = _json_of(text)
    if written is not None and (kind or kind_of(written[1]) in kinds):
        return written[0]
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
