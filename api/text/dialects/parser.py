"""Answers to events, character by character, so that nothing depends on how an answer is cut into pieces."""

import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from api.text.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged

NAME: Final = "\0name"
"""Stands for the function's name in a header: a JSON string, or bare text up to the next element."""
THINK, END_THINK = "<think>", "</think>"
_ALPHANUMERICS: Final = string.ascii_letters + string.digits


def call_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHANUMERICS) for _ in range(24))


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls are written. Between elements there may be white space; arguments are a JSON object behind a header."""

    triggers: tuple[str, ...]
    """Texts that begin a call wherever they stand."""
    header: tuple[str, ...]
    """Up to the arguments."""
    footer: tuple[str, ...]
    """What ends a call."""
    opening: tuple[str, ...] = ()
    """Between the trigger and the first call."""
    separator: str = ""
    """What stands between calls behind one trigger."""
    closing: str = ""
    """What ends the last of them."""
    id_mark: str = ""
    """What may stand behind a bare name, with an id that nobody needs."""
    bare: bool = False
    """Whether a call may also begin the answer without a trigger, with its header."""


class _State(Enum):
    START = auto()
    REASONING = auto()
    TEXT = auto()
    ELEMENTS = auto()
    ARGUMENTS = auto()
    MEMBERS = auto()
    """What else a call's object has behind its arguments, an id for one: nobody asked for it."""
    AFTER_CALL = auto()


class AnswerParser:
    """One answer's events. What looks like a call but is none is given back as content."""

    def __init__(
        self,
        syntax: CallSyntax | None,
        names: Sequence[str] = (),
        *,
        thinks: bool = False,
        is_thinking: bool = False,
        make_id: Callable[[], str] = call_id,
    ) -> None:
        """Calls of the functions `names` are found if there is a syntax for them.

        `thinks`: the answer may begin with thoughts; `is_thinking`: it is in the middle of them.
        """
        self._syntax = syntax
        self._names = frozenset(names)
        self._make_id = make_id
        self._state = _State.REASONING if is_thinking else _State.START if thinks or syntax else _State.TEXT
        self._thinks = thinks
        self._held = ""
        """What has come and may yet turn out to be something else than text."""
        self._trims = is_thinking
        """Whether white space that comes now is dropped: around thoughts it belongs to nobody."""
        self._num_calls = 0
        # the elements of a call that are expected, and how far the first of them has come
        self._elements: list[str] = []
        self._then = _State.TEXT
        self._matched = ""
        self._name = ""
        # the arguments
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING

    @property
    def is_calling(self) -> bool:
        """Whether it is in the middle of a call that was told."""
        return self._state in (_State.ARGUMENTS, _State.MEMBERS)

    def push(self, text: str) -> list[Event]:
        return merged(event for character in text for event in self._feed(character))

    def finish(self) -> list[Event]:
        """What was held back, as no more text comes."""
        held, self._held = self._held, ""
        if self._state is _State.REASONING:
            return [Reasoning(held)] if held.strip() else []
        if self._state is _State.ELEMENTS and self._then is _State.AFTER_CALL:
            return []  # the end of a call that was told
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

    # -- text and thoughts -------------------------------------------------------------------------------------------

    def _start(self, character: str) -> Iterator[Event]:
        """White space, and perhaps the beginning of thoughts or of a call, before which it belongs to nobody."""
        self._held += character
        begun = self._held.lstrip()
        if not begun:
            return
        if self._thinks and THINK.startswith(begun):
            if begun == THINK:
                self._held, self._trims, self._thinks = "", True, False
                self._state = _State.REASONING
            return
        triggers = self._syntax.triggers if self._syntax else ()
        if begun in triggers:
            self._expect_call()
            return
        if any(trigger.startswith(begun) for trigger in triggers):
            return
        self._state = _State.TEXT
        if self._syntax is not None and self._syntax.bare and begun == self._syntax.header[0][:1]:
            self._expect(self._syntax.header, _State.ARGUMENTS)
            yield from self._element(character, held=True)
            return
        held, self._held = begun if self._trims else self._held, ""
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
        assert self._syntax is not None, "calls are found by their syntax"
        self._expect((*self._syntax.opening, *self._syntax.header), _State.ARGUMENTS)

    def _expect(self, elements: Sequence[str], then: _State) -> None:
        self._elements, self._then, self._matched, self._name = list(elements), then, "", ""
        self._state = _State.ELEMENTS

    def _element(self, character: str, *, held: bool = False) -> Iterator[Event]:
        if not held:
            self._held += character
        if not self._elements:  # what follows a header
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
        """A name between quotes, or up to the element behind it."""
        self._matched += character
        if self._matched.startswith('"'):
            if len(self._matched) > 1 and character == '"':
                self._name = self._matched[1:-1]
                self._next_element()
            return
        behind = self._elements[1] if len(self._elements) > 1 else "{"
        if self._matched.endswith(behind):
            name = self._matched.removesuffix(behind)
            if self._syntax is not None and self._syntax.id_mark:
                name = name.partition(self._syntax.id_mark)[0]
            self._name = name.strip()
            self._next_element()
            if self._elements:
                self._next_element()
            elif behind == "{":
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
        """It was no call. Its last character may begin one."""
        held, self._held = self._held, ""
        self._state = _State.TEXT
        if self._then is not _State.AFTER_CALL:
            yield Content(held[:-1])
        for character in held[-1:]:
            yield from self._text(character)

    def _argument(self, character: str) -> Iterator[Event]:
        """To the end of the JSON object."""
        yield CallArguments(self._num_calls - 1, character)
        if self._closes(character):
            assert self._syntax is not None, "calls are found by their syntax"
            self._expect(self._syntax.footer, _State.AFTER_CALL)
            if not self._syntax.footer:
                self._state = _State.AFTER_CALL

    def _member(self, character: str) -> Iterator[Event]:
        if self._closes(character):
            self._state = _State.ELEMENTS
            yield from self._element(character)

    def _closes(self, character: str) -> bool:
        """Follow the nesting of JSON: whether this ends its outermost object."""
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
        """Another call, or the end of them; white space between them belongs to nobody."""
        syntax = self._syntax
        assert syntax is not None, "calls are found by their syntax"
        if character.isspace():
            return
        if character == syntax.separator:
            self._expect(syntax.header, _State.ARGUMENTS)
            self._held = character
        elif character != syntax.closing:
            self._state = _State.TEXT
            yield from self._text(character)


def _overlap(text: str, marker: str) -> int:
    """The length of the longest end of the text that begins the marker."""
    return next((n for n in range(min(len(marker), len(text)), 0, -1) if text.endswith(marker[:n])), 0)
