"""How the calls of an answer begin, and what may follow them."""

from collections.abc import Mapping, Sequence

import regex

from api.text.dialects.parsing.arguments import arguments_reader
from api.text.dialects.parsing.calls import CallReader, JsonCallReader, NamedLastReader, NamedReader
from api.text.dialects.parsing.patterns import (
    SPACE,
    Matcher,
    form_pattern,
    json_call,
    lenient,
    marks_in,
    split_at,
    with_name,
)
from api.text.dialects.syntax import Calls, Form, JsonArguments, Slot
from api.text.dialects.tools import Tool

_NOTHING = r"(?!)"
_FENCE = rf"(?:```\w*{SPACE})?"
"""Models put lists of calls in a block of code, as Python or as JSON."""


class Entries:
    """All ways in which a call begins, and the marks behind calls."""

    def __init__(self, calls: Calls, tools: Mapping[str, Tool]) -> None:
        self._entries = [_Entry(calls, form, tools) for form in calls.forms]
        before = _optional(calls.begin)
        if calls.separator:
            before += rf"(?:{lenient(calls.separator.strip())})?{SPACE}"
        if calls.bare and calls.end:
            before = _FENCE + before
        self._heads = Matcher([before + entry.optional_pattern for entry in self._entries])
        footers = _footers(calls, list(tools))
        self._footers = Matcher(footers)
        self._fenced_footers = Matcher([*footers, "```"])
        self._is_fenced = False
        """Whether the calls are in a block of code."""
        marks = dict.fromkeys(marks_in(calls.begin)[:1])
        for entry in self._entries:
            marks |= dict.fromkeys(entry.triggers)
        self.triggers = tuple(marks)
        """The marks that may begin a call anywhere."""

    def match(self, text: str) -> tuple[CallReader, str] | bool:
        """The reader of a call and the text that it has to read; else whether more text may begin a call."""
        found = self._heads.match(text)
        if not isinstance(found, tuple):
            return found
        i, match = found
        self._is_fenced |= match.group().startswith("```")
        return self._entries[i].reader(match.groupdict().get("name") or ""), text[match.end() :]

    def footer(self, text: str) -> "tuple[int, regex.Match[str]] | bool":
        """The mark behind a call at the beginning of the text; else whether more text may be one."""
        return (self._fenced_footers if self._is_fenced else self._footers).match(text)


class _Entry:
    """One way in which a call begins."""

    def __init__(self, calls: Calls, form: Form, tools: Mapping[str, Tool]) -> None:
        self._calls, self._tools = calls, tools
        self._json = json_call(form)
        before, self._footer = split_at(form, Slot.ARGUMENTS)
        self._is_named = Slot.NAME in before
        if self._json is not None:
            head = self._json.before
            pattern = form_pattern(head, tools) + SPACE + r"(?=\{)"
        else:
            head = before
            pattern = form_pattern(before, tools).removesuffix(SPACE) + self._lookahead()
        marks = marks_in(head[0]) if head and isinstance(head[0], str) else []
        is_loose = calls.loose and _is_own(marks[1:2])
        self.optional_pattern = pattern
        """The pattern of the text before the arguments. If it begins with two marks, the first one may be missing."""
        if is_loose:
            opener = lenient(marks[0])
            self.optional_pattern = rf"(?:{opener})?" + pattern.removeprefix(opener)
        has_none = calls.bare or (not marks and bool(calls.begin))
        self.triggers = [] if has_none else marks[: 2 if is_loose else 1]
        """The marks that may begin this call anywhere."""

    def reader(self, name: str) -> CallReader:
        """`name`: the function's name, if the text so far has it."""
        if self._json is not None:
            return JsonCallReader(self._json, self._tools)
        if not self._is_named:
            return NamedLastReader(self._footer, self._tools)
        footer = with_name(self._footer, name)
        return NamedReader(name, arguments_reader(self._calls.arguments, footer, self._tools[name]))

    def _lookahead(self) -> str:
        """What must follow, so that a name is not cut where a longer one continues."""
        arguments = self._calls.arguments
        if isinstance(arguments, JsonArguments):
            return SPACE + r"(?=[{\"n])"
        head, _ = split_at(arguments.argument, Slot.VALUE)
        first = next((mark for part in head[:1] if isinstance(part, str) for mark in marks_in(part)), "")
        end = next((mark for part in self._footer if isinstance(part, str) for mark in marks_in(part)), "")
        if not end:  # the end of the line is all that ends a call without arguments
            return r"(?=[ \t]*\n)"
        begin = lenient(first) if first else r"[^\s<>\"'=:,{}()\[\]|]"
        return rf"(?={SPACE}(?:{begin}|{lenient(end)}))"


def _is_own(marks: Sequence[str]) -> bool:
    """Whether this is a mark that text rarely has."""
    return bool(marks) and len(marks[0]) > 3 and marks[0][0] in "<["


def _optional(text: str) -> str:
    """The pattern of marks each of which may be missing."""
    return "".join(rf"(?:{lenient(mark)})?{SPACE}" for mark in marks_in(text))


def _footers(calls: Calls, names: Sequence[str]) -> list[str]:
    """The marks that may follow a call's arguments, a call or the last call, each of which may be missing."""
    texts, patterns = [calls.separator, calls.end], []
    for form in calls.forms:
        before, after = split_at(form, Slot.ARGUMENTS)
        if {Slot.ID, Slot.INDEX} & set(after):
            patterns.append(form_pattern(after, names))
        for name in names if Slot.NAME in after and Slot.NAME in before else names[:1]:
            texts += [part for part in with_name(after, name) if isinstance(part, str)]
    marks = dict.fromkeys(mark for text in texts for mark in marks_in(text))
    return [*patterns, *map(lenient, sorted(marks, key=len, reverse=True))] or [_NOTHING]
