"""Custom tools: functions with one string, which clients get as plain text."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from api.protocols.fields import Strict
from api.text.dialects import Tool
from api.text.guard import without_surrogates
from api.text.schemas import json_rule, problem

PARAMETER: Final = "input"
"""The name of the function's only parameter."""


MAX_ENFORCED: Final = 32
"""Regular expressions of a request that are enforced. Each takes about a millisecond to check on the event loop."""
MAX_CHARACTERS: Final = 1000
"""Length of a regular expression that is enforced, because the time of the check grows with it."""


class InputGrammar(Strict):
    """A grammar of the input. A regular expression is enforced if it is supported. Lark is only a hint."""

    syntax: Literal["lark", "regex"]
    definition: str
    _is_one_too_many: bool = False

    @property
    def may_be_enforced(self) -> bool:
        """Whether it is worth a check. A grammar of text (Lark) cannot become a grammar of its JSON."""
        return self.syntax == "regex" and len(self.definition) <= MAX_CHARACTERS and not self._is_one_too_many


def bound_grammars(grammars: Iterable[InputGrammar | None]) -> None:
    """Make hints of the regular expressions beyond the first MAX_ENFORCED."""
    given = [grammar for grammar in grammars if grammar is not None and grammar.syntax == "regex"]
    for grammar in given[MAX_ENFORCED:]:
        grammar._is_one_too_many = True


def as_function(name: str, description: str | None, grammar: InputGrammar | None) -> Tool:
    """The function that stands for a custom tool. Its description contains the grammar."""
    if grammar is not None:
        syntax = "Lark grammar" if grammar.syntax == "lark" else "regular expression"
        hint = f"The {PARAMETER} must match this {syntax}:\n{grammar.definition}"
        description = f"{description}\n\n{hint}" if description else hint
    return Tool(name, description, _schema(grammar), strict=True)


def is_hint(grammar: InputGrammar | None) -> bool:
    """Whether the grammar is not enforced."""
    return grammar is not None and "pattern" not in _schema(grammar)["properties"][PARAMETER]


def _schema(grammar: InputGrammar | None) -> dict[str, Any]:
    plain = _with_input({"type": "string"})
    if grammar is None or not grammar.may_be_enforced:
        return plain
    constrained = _with_input({"type": "string", "pattern": f"^(?:{grammar.definition})$"})
    return plain if problem(json_rule(constrained)) else constrained


def _with_input(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {PARAMETER: schema},
        "required": [PARAMETER],
        "additionalProperties": False,
    }


def arguments_of(text: str) -> str:
    """The function's arguments for this input, formatted like answers, to get a prefix hit."""
    return json.dumps({PARAMETER: text}, ensure_ascii=False)


_HEAD: Final = re.compile(rf'\s*\{{\s*"{PARAMETER}"\s*:\s*"')
_CHARACTERS: Final = re.compile(
    r"""(?: [^"\\]+
          | \\["\\/bfnrt]
          | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
          | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}  # two escapes of one character
          | \\u[dD][89abAB][0-9a-fA-F]{2}(?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F])  # the first of two, alone
        )*""",
    re.VERBOSE,
)


class InputReader:
    """Reads the input from the JSON text of the arguments, piece by piece."""

    def __init__(self) -> None:
        self._rest = ""
        """Text that is not read yet: the head, or the beginning of an escape."""
        self._is_inside = False

    def push(self, arguments: str) -> str:
        """The new part of the input. The parts together are the input, up to where the arguments were cut."""
        self._rest += arguments
        if not self._is_inside:
            head = _HEAD.match(self._rest)
            if head is None:
                return ""
            self._rest = self._rest[head.end() :]
            self._is_inside = True
        whole = _CHARACTERS.match(self._rest)
        assert whole is not None, "it matches the empty text"
        self._rest = self._rest[whole.end() :]
        return without_surrogates(json.loads(f'"{whole[0]}"', strict=False))


def input_of(arguments: str) -> str:
    """The input in the JSON text of the arguments, which may be cut."""
    return InputReader().push(arguments)
