"""Readers of a call's arguments, one character at a time. They give the JSON text of the arguments."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from api.text.dialects.kinds import kinds_of
from api.text.dialects.parsing.patterns import (
    SPACE,
    Matcher,
    first_marks,
    form_pattern,
    is_plain_key,
    lenient,
    marks_in,
    split_at,
    trailing_space,
    without_trailing_space,
)
from api.text.dialects.parsing.values import JsonScanner, LiteralReader, nested_schema, quoted, typed
from api.text.dialects.syntax import Form, JsonArguments, Slot, TaggedArguments
from api.text.dialects.tools import Tool
from api.text.schemas.references import References

_CDATA = ("<![CDATA[", "]]>")


class ArgumentsReader(Protocol):
    """Reads the arguments of one call."""

    begun: bool
    """Whether this certainly is a call."""
    done: bool
    failed: bool
    rest: str
    """Text after the arguments, once they are done."""

    def push(self, character: str) -> str:
        """The JSON text that becomes certain."""

    def finish(self) -> str:
        """The JSON text at the end of the answer. Sets `done` if only marks are missing."""


def arguments_reader(arguments: JsonArguments | TaggedArguments, footer: Form, tool: Tool) -> ArgumentsReader:
    """`footer`: what the form has after the arguments."""
    if isinstance(arguments, JsonArguments):
        return JsonReader()
    return TaggedReader(arguments, footer, tool)


class JsonReader:
    """Reads arguments that are one JSON object. Also takes null, and an object inside a JSON string."""

    def __init__(self) -> None:
        self.begun = self.done = self.failed = False
        self.rest = ""
        self._scanner = JsonScanner()
        self._text = ""  # of arguments that are no object

    def push(self, character: str) -> str:
        is_text = self._scanner.in_string
        self._scanner.push(character)
        if not self.begun and not self._text:
            if character.isspace():
                return ""
            self.begun = character == "{"
            self.failed = character not in '{"n'
        self.failed |= self._scanner.failed
        if self.failed:
            return ""
        if is_text and character < " ":  # models often write line breaks as they are
            character = quoted(character)
        if self.begun:
            self.done = self._scanner.done
            return character
        self._text += character
        return self._converted(self._text) if self._scanner.done else ""

    def finish(self) -> str:
        return ""

    def _converted(self, text: str) -> str:
        try:
            value = json.loads(text)
            inner = "{}" if value in (None, "") else str(value)
            self.begun = self.done = isinstance(json.loads(inner), dict)
        except ValueError:
            self.begun = self.done = False
        self.failed = not self.done
        return inner if self.done else ""


class TaggedReader:
    """Reads arguments that are written one by one."""

    def __init__(self, arguments: TaggedArguments, footer: Form, tool: Tool) -> None:
        self.begun = self.done = self.failed = False
        self.rest = ""
        self._tool = tool
        self._syntax = arguments
        head, self._tail = split_at(arguments.argument, Slot.VALUE)
        self._space = trailing_space(head)
        space, separator = SPACE, lenient(arguments.separator.strip())
        head, before = without_trailing_space(head), f"{space}(?:{separator})?{space}"
        odd = [key for key in tool.properties if key and not is_plain_key(key)]
        heads = [form_pattern(head, odd, only_known=True)] if odd else []  # first, to wait for the whole of such a key
        self._head = Matcher([before + each for each in (*heads, form_pattern(head, tool.properties))])
        end = next((mark for part in footer if isinstance(part, str) for mark in marks_in(part)), "")
        self._end = Matcher([f"{space}(?:{separator})?{space}{lenient(end)}"] if end else [r"(?!)"])
        self._closes_line = not end
        self._ends = first_marks(self._tail, (arguments.separator,), head, footer)
        self._num = 0
        self._held = ""
        self._value: _Value | None = None

    def push(self, character: str) -> str:
        if self._value is not None:
            text = self._value.push(character)
            self.failed |= self._value.failed
            if not self._value.done:
                return text
            self._held, self._value = self._value.rest, None
            rest, self._held = self._held, ""
            return text + "".join(self.push(each) for each in rest if not self.done)
        self._held = (self._held + character).lstrip()
        return self._between() if self._held else ""

    def finish(self) -> str:
        """Complete arguments after which only marks are missing."""
        if self._value is not None:
            text = self._value.finish()
            if not self._value.done:
                return text
            self._value = None
            self._held = ""
            return text + self._close()
        if not (self.begun or self._closes_line) or (
            self._held.strip() and self._head.match(self._held) is False is self._end.match(self._held)
        ):
            return ""
        return self._close()

    def _between(self) -> str:
        """Before an argument, or after the last one."""
        end, head = self._end.match(self._held), self._head.match(self._held)
        if isinstance(end, tuple):
            self.rest = self._held[end[1].end() :]
            return self._close()
        if isinstance(head, tuple):
            return self._begin_value(head[1].groupdict(), self._held[head[1].end() :])
        if end or head:
            return ""
        if not self._num and not self._closes_line:
            self.failed = True
            return ""
        self.rest = self._held  # its end is missing
        return self._close()

    def _begin_value(self, groups: Mapping[str, str | None], rest: str) -> str:
        key, word = groups.get("key") or "", groups.get("type")
        kinds = [kind for kind, text in self._syntax.types if text == word] if word else []
        kind = kinds[0] if len(kinds) == 1 else ""
        self._value = self._value_reader(key, kind)
        begin = ("" if self.begun else "{") + (", " if self._num else "") + json.dumps(key, ensure_ascii=False) + ": "
        self.begun, self._held = True, ""
        self._num += 1
        return begin + "".join(self.push(each) for each in rest)

    def _value_reader(self, key: str, kind: str) -> "_RawValue | _LiteralValue":
        if self._syntax.encoding in ("raw", "nested"):
            return _RawValue(self._syntax, self._tail, self._space, self._tool, key, kind)
        return _LiteralValue(self._syntax, self._tail, self._ends, key)

    def _close(self) -> str:
        begun, self.begun, self.done, self._held = self.begun, True, True, ""
        return "}" if begun else "{}"


class _Value(Protocol):
    done: bool
    failed: bool
    rest: str

    def push(self, character: str) -> str: ...
    def finish(self) -> str: ...


class _LiteralValue:
    """A value that shows where it ends."""

    def __init__(self, syntax: TaggedArguments, tail: Form, ends: frozenset[str], key: str) -> None:
        """`ends`: the characters that the text after the value may begin with."""
        quotes = {"json": ('"',), "python": ("'", '"'), "gemma": ('<|"|>',)}[syntax.encoding]
        self._reader = LiteralReader(quotes, ends, escapes=syntax.encoding != "gemma")
        tail = tuple(key if part is Slot.KEY else part for part in tail)
        self._tail = Matcher([SPACE + form_pattern(tail)])
        self._held = ""
        self._scanner = JsonScanner()
        self.done = self.failed = False
        self.rest = ""

    def push(self, character: str) -> str:
        if not self._reader.done:
            text, belongs = self._reader.push(character)
            self.failed |= self._reader.failed or not all(map(self._scanner.push, text))
            if belongs:
                return text
            return text + self._after(character)
        return self._after(character)

    def finish(self) -> str:
        text = "" if self._reader.done else self._reader.finish()
        self.done = self._reader.done
        return text

    def _after(self, character: str) -> str:
        """The text of the form after the value, which may be missing."""
        self._held += character
        found = self._tail.match(self._held)
        if found is not True:
            self.done = True
            self.rest = self._held[found[1].end() :] if found else self._held
        return ""


class _RawValue:
    """A value up to the mark after it."""

    def __init__(self, syntax: TaggedArguments, tail: Form, space: str, tool: Tool, key: str, kind: str) -> None:
        self._argument = syntax.argument if syntax.encoding == "nested" else ()
        end = "".join(part if isinstance(part, str) else key for part in tail)
        self._end = end.strip() or end
        """The mark after it; a line break if there is no other."""
        self._end_space = end[: len(end) - len(end.lstrip())] if end.strip() else ""
        self._skipped = [space, _CDATA[0] if syntax.cdata else ""]
        """What may come before it and is not yet found."""
        self._kinds = tool.kinds(key)
        self._kind = kind
        self._schema = tool.properties.get(key, {})
        self._references = tool.references
        self._streams = kind == "string" or (not kind and self._kinds == {"string"})
        self._text = ""
        """The text that is not yet written."""
        self._wrote = False
        self.done = self.failed = False
        self.rest = ""

    def push(self, character: str) -> str:
        self._text += character
        if self._skipped and not self._skip():
            return ""
        if self._text.endswith(self._end):
            return self._complete(self._text.removesuffix(self._end).removesuffix(self._end_space))
        return self._write() if self._streams else ""

    def finish(self) -> str:
        """The text of a value whose end is missing."""
        text, self._text = self._text, ""
        if not self._streams and text.strip():
            scanner = JsonScanner()
            if all(scanner.push(character) for character in text.strip()):
                return text.strip()
        return ("" if self._wrote or not text else '"') + quoted(text)

    def _skip(self) -> bool:
        """Drop the white space of the form and a CDATA mark. Returns whether the value has begun."""
        while self._skipped:
            skipped = self._skipped[0]
            if skipped and len(self._text) < len(skipped) and skipped.startswith(self._text):
                return False
            del self._skipped[0]
            if skipped and self._text.startswith(skipped):
                self._text = self._text.removeprefix(skipped)
                if skipped == _CDATA[0]:
                    self._end, self._end_space = _CDATA[1] + self._end, ""
        return True

    def _write(self) -> str:
        """The text except its end, which may belong to the mark after it."""
        ends = (self._end_space + self._end, self._end)
        limit = min(len(self._text), max(map(len, ends)))
        kept = next((n for n in range(limit, 0, -1) if any(each.startswith(self._text[-n:]) for each in ends)), 0)
        size = len(self._text) - kept
        text, self._text = self._text[:size], self._text[size:]
        begin = "" if self._wrote or not text else '"'
        self._wrote |= bool(text)
        return begin + quoted(text)

    def _complete(self, text: str) -> str:
        self.done = True
        if self._streams:
            return ("" if self._wrote else '"') + quoted(text) + '"'
        if self._argument:
            return _nested(text, self._argument, self._schema, self._references)
        return typed(text, self._kinds, self._kind)


def _nested(text: str, argument: Form, schema: Any, references: References) -> str:
    """The JSON text of a raw value that may repeat the form of an argument inside."""
    kinds = kinds_of(schema, references)
    if not text.strip() and "string" not in kinds and kinds & {"array", "object"}:
        return "[]" if "array" in kinds else "{}"
    members = _members(text, argument) if kinds & {"object", "array"} and "string" not in kinds else None
    if members is None:
        return typed(text, kinds)
    if members and all(key == "item" for key, _ in members) and "array" in kinds:
        items = (_nested(inner, argument, nested_schema(schema, "item"), references) for _, inner in members)
        return f"[{', '.join(items)}]"
    if "object" not in kinds:
        return typed(text, kinds)
    return (
        "{"
        + ", ".join(
            f"{json.dumps(key, ensure_ascii=False)}: {_nested(inner, argument, nested_schema(schema, key), references)}"
            for key, inner in members
        )
        + "}"
    )


def _members(text: str, argument: Form) -> list[tuple[str, str]] | None:
    """The keys and texts of the members in a nested value; None if it has another form."""
    head, tail = split_at(argument, Slot.VALUE)
    matcher = Matcher([SPACE + form_pattern(without_trailing_space(head))])
    members = []
    while text.strip():
        found = matcher.match(text)
        if not isinstance(found, tuple):
            return None
        key = found[1]["key"]
        begin = found[1].group().strip()
        end = "".join(part if isinstance(part, str) else key for part in tail).strip()
        at = _matching_end(text, found[1].end(), begin, end)
        if at < 0:
            return None
        members.append((key, text[found[1].end() : at]))
        text = text[at + len(end) :]
    return members or None


def _matching_end(text: str, start: int, begin: str, end: str) -> int:
    """Where the mark lies that ends a member; -1 if it has none. Members of its name may be inside."""
    depth, at = 1, start
    while depth:
        next_end, next_begin = text.find(end, at), text.find(begin, at)
        if next_end < 0:
            return -1
        if 0 <= next_begin < next_end:
            depth, at = depth + 1, next_begin + len(begin)
        else:
            depth, at = depth - 1, next_end + len(end)
    return at - len(end)
