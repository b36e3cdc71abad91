"""Parses answers into events, one character at a time, so that the pieces of an answer do not matter."""

import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from api.text.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged

NAME: Final = "\0name"
"""Placeholder for the function's name in a header: a JSON string, or bare text up to the next element."""
THINK, END_THINK = "<think>", "</think>"
_ALPHANUMERICS: Final = string.ascii_letters + string.digits


def call_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHANUMERICS) for _ in range(24))


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """The syntax of calls. White space may separate elements. The arguments are a JSON object after a header."""

    triggers: tuple[str, ...]
    """Texts that start a call at any position."""
    header: tuple[str, ...]
    """Elements before the arguments."""
    footer: tuple[str, ...]
    """Elements after the arguments."""
    opening: tuple[str, ...] = ()
    """Elements between the trigger and the first call."""
    separator: str = ""
    """Text between the calls after one trigger."""
    closing: str = ""
    """Text after the last of these calls."""
    id_mark: str = ""
    """Text that may follow a bare name. The id after it is ignored."""
    bare: bool = False
    """Whether a header at the start of the answer starts a call without a trigger."""


class _State(Enum):
    START = auto()
    REASONING = auto()
    TEXT = auto()
    ELEMENTS = auto()
    ARGUMENTS = auto()
    MEMBERS = auto()
    """Members after the arguments in a call's object, such as an id. They are ignored."""
    AFTER_CALL = auto()


class AnswerParser:
    """Parses one answer into events. Text that looks like a call but is not valid becomes content."""

    def __init__(
        self,
        syntax: CallSyntax | None,
        names: Sequence[str] = (),
        *,
        thinks: bool = False,
        is_thinking: bool = False,
        make_id: Callable[[], str] = call_id,
    ) -> None:
        """With a `syntax`, calls of the functions `names` are recognized.

        `thinks`: the answer may start with reasoning. `is_thinking`: it starts inside the reasoning.
        """
        self._syntax = syntax
        self._names = frozenset(names)
        self._make_id = make_id
        self._state = _State.REASONING if is_thinking else _State.START if thinks or syntax else _State.TEXT
        self._thinks = thinks
        self._held = ""
        """Text that is held back because it may be part of a marker or a call."""
        self._trims = is_thinking
        """Whether white space is dropped at this point, because it is next to reasoning."""
        self._num_calls = 0
        # the expected elements of a call, and the matched part of the first one
        self._elements: list[str] = []
        self._then = _State.TEXT
        self._matched = ""
        self._name = ""
        # the position in the JSON of the arguments
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING

    @property
    def is_calling(self) -> bool:
        """Whether the text ends inside a call that was reported with CallBegin."""
        return self._state in (_State.ARGUMENTS, _State.MEMBERS)

    def push(self, text: str) -> list[Event]:
        return merged(event for character in text for event in self._feed(character))

    def finish(self) -> list[Event]:
        """End the answer. Returns the events of the text that was held back."""
        held, self._held = self._held, ""
        if self._state is _State.REASONING:
            return [Reasoning(held)] if held.strip() else []
        if self._state is _State.ELEMENTS and self._then is _State.AFTER_CALL:
            return []  # part of a footer
        if self._state is _State.START and self._trims:
            held = held.lstrip()
        return [Content(held)] if held and self._state is not _State.AFTER_CALL else []

    def _feed(self, character: str) -> Iterator[Event]:
        match self._state:
            case _State.START:
                yield from self._start(character)
            case _State.REASONING:
                yield from self._reason(character)
            case _State.TEXT:
                yield from self._text(character)
            case _State.ELEMENTS:
                yield from self._element(character)
            case _State.ARGUMENTS:
                yield from self._argument(character)
            case _State.MEMBERS:
                yield from self._member(character)
            case _State.AFTER_CALL:
                yield from self._after_call(character)

    # -- text and reasoning ------------------------------------------------------------------------------------------

    def _start(self, character: str) -> Iterator[Event]:
        """Hold back leading white space and a possible start of reasoning or of a call, which drops the white space."""
        self._held += character
        stripped = self._held.lstrip()
        if not stripped:
            return
        if self._thinks and THINK.startswith(stripped):
            if stripped == THINK:
                self._held, self._trims, self._thinks = "", True, False
                self._state = _State.REASONING
            return
        triggers = self._syntax.triggers if self._syntax else ()
        if stripped in triggers:
            self._expect_call()
            return
        if any(trigger.startswith(stripped) for trigger in triggers):
            return
        self._state = _State.TEXT
        if self._syntax is not None and self._syntax.bare and stripped == self._syntax.header[0][:1]:
            self._expect(self._syntax.header, _State.ARGUMENTS)
            yield from self._element(character, held=True)
            return
        held, self._held = stripped if self._trims else self._held, ""
        for each in held:
            yield from self._text(each)

    def _reason(self, character: str) -> Iterator[Event]:
        self._held += character
        if self._held.endswith(END_THINK):
            thought = self._held.removesuffix(END_THINK).rstrip()
            if thought:
                yield Reasoning(thought)
            self._held, self._trims, self._thinks = "", True, False
            self._state = _State.START
            return
        if self._trims and self._held.isspace():
            self._held = ""
            return
        self._trims = False
        keep = len(self._held) - _overlap(self._held, END_THINK)
        thought = self._held[:keep].rstrip()
        if thought:
            yield Reasoning(thought)
            self._held = self._held[len(thought) :]

    def _text(self, character: str) -> Iterator[Event]:
        self._held += character
        triggers = self._syntax.triggers if self._syntax else ()
        while self._held and not any(trigger.startswith(self._held) for trigger in triggers):
            yield Content(self._held[0])
            self._held = self._held[1:]
        if self._held in triggers:
            self._expect_call()

    # -- calls -------------------------------------------------------------------------------------------------------

    def _expect_call(self) -> None:
        assert self._syntax is not None, "calls need a syntax"
        self._expect((*self._syntax.opening, *self._syntax.header), _State.ARGUMENTS)

    def _expect(self, elements: Sequence[str], then: _State) -> None:
        self._elements, self._then, self._matched, self._name = list(elements), then, "", ""
        self._state = _State.ELEMENTS

    def _element(self, character: str, *, held: bool = False) -> Iterator[Event]:
        if not held:
            self._held += character
        if not self._elements:  # after a header
            yield from self._begin_arguments(character)
        elif character.isspace() and not self._matched:
            return
        elif character == "," and self._elements[0] == "}" and not self._matched:
            self._held, self._depth = "", 1
            self._state = _State.MEMBERS
        elif self._elements[0] == NAME:
            yield from self._name_character(character)
        elif self._elements[0].startswith(self._matched + character):
            self._matched += character
            if self._matched == self._elements[0]:
                self._next_element()
        else:
            yield from self._give_back()

    def _next_element(self) -> None:
        del self._elements[0]
        self._matched = ""
        if not self._elements and self._then is _State.AFTER_CALL:
            self._state = _State.AFTER_CALL
            self._held = ""

    def _name_character(self, character: str) -> Iterator[Event]:
        """Read a name in quotes, or a bare name up to the next element."""
        self._matched += character
        if self._matched.startswith('"'):
            if len(self._matched) > 1 and character == '"':
                self._name = self._matched[1:-1]
                self._next_element()
            return
        following = self._elements[1] if len(self._elements) > 1 else "{"
        if self._matched.endswith(following):
            name = self._matched.removesuffix(following)
            if self._syntax is not None and self._syntax.id_mark:
                name = name.partition(self._syntax.id_mark)[0]
            self._name = name.strip()
            self._next_element()
            if self._elements:
                self._next_element()
            elif following == "{":
                yield from self._begin_arguments("{")

    def _begin_arguments(self, character: str) -> Iterator[Event]:
        if character.isspace():
            return
        if character != "{" or self._name not in self._names:
            yield from self._give_back()
            return
        yield CallBegin(self._num_calls, self._make_id(), self._name)
        self._num_calls += 1
        self._held = ""
        self._depth, self._in_string, self._escaped = 0, False, False
        self._state = _State.ARGUMENTS
        yield from self._argument(character)

    def _give_back(self) -> Iterator[Event]:
        """Return the held text as content, because it is not a call. Its last character may start one."""
        held, self._held = self._held, ""
        self._state = _State.TEXT
        if self._then is not _State.AFTER_CALL:
            yield Content(held[:-1])
        for character in held[-1:]:
            yield from self._text(character)

    def _argument(self, character: str) -> Iterator[Event]:
        """Read up to the end of the JSON object."""
        yield CallArguments(self._num_calls - 1, character)
        if self._closes(character):
            assert self._syntax is not None, "calls need a syntax"
            self._expect(self._syntax.footer, _State.AFTER_CALL)
            if not self._syntax.footer:
                self._state = _State.AFTER_CALL

    def _member(self, character: str) -> Iterator[Event]:
        if self._closes(character):
            self._state = _State.ELEMENTS
            yield from self._element(character)

    def _closes(self, character: str) -> bool:
        """Track the nesting of JSON. Returns whether this character ends the outermost object."""
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return not self._depth
        return False

    def _after_call(self, character: str) -> Iterator[Event]:
        """Start the next call, or end the calls. White space between calls is dropped."""
        syntax = self._syntax
        assert syntax is not None, "calls need a syntax"
        if character.isspace():
            return
        if character == syntax.separator:
            self._expect(syntax.header, _State.ARGUMENTS)
            self._held = character
        elif character != syntax.closing:
            self._state = _State.TEXT
            yield from self._text(character)


def _overlap(text: str, marker: str) -> int:
    """The length of the longest suffix of the text that is a prefix of the marker."""
    return next((n for n in range(min(len(marker), len(text)), 0, -1) if text.endswith(marker[:n])), 0)
