"""Reads one tool call of an answer, one character at a time."""

import json
from collections.abc import Mapping
from typing import Final, Protocol

from api.text.dialects.parsing.arguments import ArgumentsReader, JsonReader
from api.text.dialects.parsing.patterns import NAME_KEY, JsonCall, Matcher, form_pattern
from api.text.dialects.parsing.values import JsonScanner
from api.text.dialects.syntax import Form, Slot
from api.text.dialects.tools import Tool

MAX_HELD: Final = 20_000
"""Characters of a text that may become a call. A longer one is no call."""


_ARGUMENTS: Final = {"arguments", "parameters"}
"""Keys that models take for each other."""


class CallReader(Protocol):
    """Reads one call from the text after its beginning."""

    @property
    def name(self) -> str:
        """The function's name; empty until it is known."""

    @property
    def begun(self) -> bool:
        """Whether this certainly is a call. Its name is then known."""

    @property
    def done(self) -> bool: ...

    @property
    def failed(self) -> bool: ...

    @property
    def rest(self) -> str:
        """Text after the call, once it is done."""

    def push(self, character: str) -> str:
        """The JSON text of the arguments that becomes certain."""

    def finish(self) -> str:
        """The JSON text at the end of the answer. Sets `done` if only marks are missing."""


class NamedReader:
    """Reads a call whose name comes before its arguments."""

    def __init__(self, name: str, arguments: ArgumentsReader) -> None:
        self.name = name
        self._arguments = arguments

    @property
    def begun(self) -> bool:
        return self._arguments.begun

    @property
    def done(self) -> bool:
        return self._arguments.done

    @property
    def failed(self) -> bool:
        return self._arguments.failed

    @property
    def rest(self) -> str:
        return self._arguments.rest

    def push(self, character: str) -> str:
        return self._arguments.push(character)

    def finish(self) -> str:
        return self._arguments.finish()


class NamedLastReader:
    """Reads a call whose JSON arguments come before its name. Nothing is certain before the name."""

    def __init__(self, footer: Form, tools: Mapping[str, Tool]) -> None:
        self.name = self.rest = ""
        self.begun = self.done = self.failed = False
        self._arguments = JsonReader()
        self._text = self._held = ""
        self._footer = Matcher([form_pattern(footer[: footer.index(Slot.NAME) + 2], tools)])

    def push(self, character: str) -> str:
        if not self._arguments.done:
            self._text += self._arguments.push(character)
            self.failed = self._arguments.failed or len(self._text) > MAX_HELD
            character = self._arguments.rest
            if not character:
                return ""
        self._held += character
        found = self._footer.match(self._held)
        if isinstance(found, tuple):
            self.name, self.rest = found[1]["name"], self._held[found[1].end() :]
            self.begun = self.done = True
            return self._text
        self.failed = not found
        return ""

    def finish(self) -> str:
        return ""


class JsonCallReader:
    """Reads a call that is one JSON object, with its members in any order. Other members are ignored."""

    def __init__(self, call: JsonCall, tools: Mapping[str, Tool]) -> None:
        self.name = self.rest = ""
        self.begun = self.done = self.failed = False
        self._call, self._tools = call, tools
        self._path: list[str] = []
        """The keys of the members that are being read."""
        self._key: str | None = None
        self._scanner: JsonScanner | JsonReader | None = None
        self._text = ""
        """The text of a member that is no argument."""
        self._expected = "object"
        self._waiting: str | None = None
        """Arguments that were complete before the name."""
        self._num_held = 0

    def push(self, character: str) -> str:
        self._num_held += not self.begun
        if self._num_held > MAX_HELD:
            self.failed = True
        if isinstance(self._scanner, JsonReader):
            return self._argument(character, self._scanner)
        if self._scanner is not None:
            return self._member(character, self._scanner)
        if character.isspace():
            return ""
        match self._expected, character:
            case "object", "{":
                self._expected = "key"
            case (("key" | "comma"), "}"):
                return self._end_object()
            case "key", '"':
                self._scan(character)
            case "colon", ":":
                self._expected = "value"
            case "value", _:
                return self._begin_value(character)
            case "comma", ",":
                self._expected = "key"
            case _:
                self.failed = True
        return ""

    def finish(self) -> str:
        """Complete a call after whose arguments only marks are missing."""
        if not self.begun or isinstance(self._scanner, JsonReader):
            return ""
        self.done = True
        return ""

    def _scan(self, character: str) -> None:
        self._scanner, self._text = JsonScanner(), character
        self._scanner.push(character)

    def _begin_value(self, character: str) -> str:
        path = (*self._path, str(self._key))
        if self._is_arguments(path):
            self._scanner = JsonReader()
            return self._argument(character, self._scanner)
        wanted = (self._call.arguments_path, self._call.name_path or ())
        if character == "{" and any(len(each) > len(path) and each[: len(path)] == path for each in wanted):
            self._path.append(str(self._key))
            self._expected = "key"
            return ""
        self._scan(character)
        return ""

    def _is_arguments(self, path: tuple[str, ...]) -> bool:
        wanted = self._call.arguments_path
        if len(path) != len(wanted):
            return False
        for key, expected in zip(path, wanted, strict=True):
            if expected == NAME_KEY and key in self._tools:
                self.name = key
            elif key != expected and (not {key, expected} <= _ARGUMENTS or self.begun or self._waiting is not None):
                return False
        return True

    def _argument(self, character: str, reader: JsonReader) -> str:
        text = reader.push(character)
        self.failed |= reader.failed
        if self.name:
            self.begun |= reader.begun
        else:
            self._waiting = (self._waiting or "") + text
            text = ""
        if reader.done:
            self._scanner, self._expected = None, "comma"
            if reader.rest:
                return text + self.push(reader.rest)
        return text

    def _member(self, character: str, scanner: JsonScanner) -> str:
        belongs = scanner.push(character)
        self.failed |= scanner.failed
        if belongs:
            self._text += character
        if not scanner.done:
            return ""
        self._scanner = None
        text = ""
        if self._expected == "key":
            self._key, self._expected = _string(self._text), "colon"
            self.failed = self._key is None
        else:
            self._expected = "comma"
            if (*self._path, self._key) == self._call.name_path:
                text = self._named(_string(self._text))
        return text if belongs else text + self.push(character)

    def _named(self, name: str | None) -> str:
        if name not in self._tools:
            self.failed = True
            return ""
        self.name = str(name)
        if self._waiting is None:
            return ""
        self.begun = True
        return self._waiting

    def _end_object(self) -> str:
        if self._path:
            self._key = self._path.pop()
            self._expected = "comma"
            return ""
        if not self.name:
            self.failed = True
            return ""
        begun, self.begun, self.done = self.begun, True, True
        return "" if begun else "{}"


def _string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
