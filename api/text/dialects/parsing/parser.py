"""Parses answers into events, one character at a time, so that the pieces of an answer do not matter."""

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto

from api.text.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged
from api.text.dialects.ids import call_id
from api.text.dialects.parsing.calls import CallReader
from api.text.dialects.parsing.entries import Entries
from api.text.dialects.parsing.meanings import Meanings
from api.text.dialects.syntax import AnswerSyntax
from api.text.dialects.tools import ToolUse


class _State(Enum):
    TEXT = auto()
    REASONING = auto()
    HEADER = auto()
    """Text that may begin a call."""
    CALL = auto()
    AFTER_CALL = auto()


class AnswerParser:
    """Parses one answer into events. Text that looks like a call but is not valid becomes content."""

    def __init__(
        self,
        syntax: AnswerSyntax,
        use: ToolUse | None = None,
        *,
        is_thinking: bool = False,
        keeps_reasoning: bool = False,
        make_id: Callable[[], str] = call_id,
    ) -> None:
        """With tools in `use`, their calls are recognized.

        `is_thinking`: the answer starts inside the reasoning. `keeps_reasoning`: reasoning and its marks are content.
        """
        self._entries = Entries(syntax.calls, use.by_name()) if syntax.calls and use else None
        self._bare = syntax.calls is not None and use is not None and syntax.calls.bare
        triggers = self._entries.triggers if self._entries else ()
        self._marks = Meanings(syntax, triggers, is_thinking=is_thinking)
        self._make_id = make_id
        self._keeps_reasoning = keeps_reasoning
        self._state = _State.REASONING if is_thinking else _State.TEXT
        self.ended = False
        """Whether the answer has a mark that ends it. Later text is dropped."""
        self._input: deque[str] = deque()
        """Characters to read next."""
        self._held = ""
        """Text that is held back because it may be part of a mark or a call."""
        self._blank = ""
        """White space at the beginning of the text, or at the end of a piece of reasoning."""
        self._is_blank = True
        """Whether the text or the reasoning has no other characters yet."""
        self._trims = is_thinking
        """Whether the white space at the beginning of the text is dropped, because it is next to reasoning."""
        self._may_think = True
        """Whether reasoning may begin here."""
        # the calls that are being read
        self._num_calls = 0
        self._reader: CallReader | None = None
        self._has_begun = False
        self._in_thought = False
        """Whether they are inside the reasoning. Then only the end of the answer shows that they are no quotation."""
        self._raw = ""
        self._pending: list[Event] = []
        self._unread = ""
        """The text of a call after what was reported of it."""
        self._is_broken = False
        """Whether a call that was reported turned out to be invalid."""

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING or self._in_thought

    @property
    def is_calling(self) -> bool:
        """Whether a call that was reported with CallBegin is not complete."""
        return self._is_broken or (self._state is _State.CALL and self._has_begun)

    def push(self, text: str) -> list[Event]:
        self._input.extend(text)
        return merged(self._read())

    def finish(self) -> list[Event]:
        """End the answer. Returns the events of the text that was held back."""
        return merged(self._finished())

    def _read(self) -> Iterator[Event]:
        while self._input and not self.ended:
            character = self._input.popleft()
            if self._in_thought:
                self._raw += character
                if self._state is _State.CALL and (end := self._end_of_quotation()):
                    yield from self._quote(len(end))
                    continue
            match self._state:
                case _State.TEXT:
                    yield from self._text(character)
                case _State.REASONING:
                    yield from self._reason(character)
                case _State.HEADER:
                    yield from self._header(character)
                case _State.CALL:
                    yield from self._call(character)
                case _State.AFTER_CALL:
                    yield from self._after_call(character)

    # -- text --------------------------------------------------------------------------------------------------------

    def _text(self, character: str) -> Iterator[Event]:
        if self._is_blank and not self._held and character.isspace():
            self._blank += character
            return
        self._held += character
        if self._is_blank and self._bare and self._may_call(self._held):
            self._begin_header()
            return
        marks = self._marks.in_text
        while self._held and not marks.may_grow(self._held):
            mark = marks.at(self._held)
            if mark and self._acts(mark):
                yield from self._act(mark)
                return
            yield from self._say(self._held[0])
            self._held = self._held[1:]

    def _may_call(self, text: str) -> bool:
        return self._entries is not None and self._entries.match(text) is not False

    def _acts(self, mark: str) -> bool:
        """Whether a mark has a meaning at this point."""
        marks = self._marks
        if mark in marks.words:
            return self._is_blank
        if mark in marks.triggers or mark in marks.noise or mark in marks.ends:
            return True
        if mark in marks.thought_begins:
            return self._may_think or marks.thoughts_anywhere
        return mark in marks.thought_ends and self._is_blank and marks.may_begin_with_end

    def _act(self, mark: str) -> Iterator[Event]:
        marks = self._marks
        if mark in marks.thought_begins and (self._may_think or marks.thoughts_anywhere):
            yield from self._begin_reasoning(mark)
            self._read_again(self._held[len(mark) :])
        elif mark in marks.triggers:
            self._begin_header()
        else:
            yield from self._act_without_call(mark)

    def _act_without_call(self, mark: str) -> Iterator[Event]:
        marks = self._marks
        if mark in marks.ends and mark not in marks.noise:
            self._end()
            return
        if mark in marks.thought_ends and mark not in marks.noise:
            self._trims, self._may_think = True, False
            if self._keeps_reasoning:
                yield Content(mark)
        self._read_again(self._held[len(mark) :])

    def _say(self, character: str) -> Iterator[Event]:
        """A character of the text."""
        if self._is_blank:
            if self._blank and not self._trims:
                yield Content(self._blank)
            if character.isspace() and self._trims:
                return
            self._blank, self._is_blank, self._may_think = "", False, False
        yield Content(character)

    def _read_again(self, text: str) -> None:
        self._held = ""
        self._input.extendleft(reversed(text))
        if self._in_thought:
            self._raw = self._raw[: len(self._raw) - len(text)]

    def _end(self) -> None:
        self._held = self._blank = ""
        self.ended = True
        self._input.clear()

    # -- reasoning ---------------------------------------------------------------------------------------------------

    def _begin_reasoning(self, mark: str) -> Iterator[Event]:
        self._state, self._blank, self._is_blank, self._may_think = _State.REASONING, "", True, False
        if self._keeps_reasoning:
            yield Content(mark)

    def _reason(self, character: str) -> Iterator[Event]:
        self._held += character
        marks = self._marks
        while self._held and not marks.in_thoughts.may_grow(self._held):
            mark = marks.in_thoughts.at(self._held)
            if mark in marks.thought_ends or mark in marks.text_begins:  # the mark behind reasoning may be missing
                yield from self._end_reasoning(mark)
                return
            if mark in marks.triggers:
                if not self._is_blank:
                    self._in_thought, self._raw = True, self._held
                self._begin_header()
                return
            if mark in marks.ends:
                self._end()
                return
            size = len(mark) if mark and self._is_blank else 1  # a model may repeat the mark that the prompt ends with
            if size == 1:
                yield from self._think(self._held[0])
            self._held = self._held[size:]

    def _end_reasoning(self, mark: str) -> Iterator[Event]:
        if self._keeps_reasoning:
            yield Content(self._blank + mark)
        self._state, self._blank, self._is_blank = _State.TEXT, "", True
        self._trims, self._may_think = not self._keeps_reasoning, False
        self._read_again(self._held[len(mark) :])

    def _think(self, text: str) -> Iterator[Event]:
        """Text of the reasoning. White space at its beginning and at its end is dropped."""
        kind = Content if self._keeps_reasoning else Reasoning
        for character in text:
            if not character.isspace():
                yield kind(self._blank + character)
                self._blank, self._is_blank = "", False
            elif not self._is_blank or self._keeps_reasoning:
                self._blank += character

    # -- calls -------------------------------------------------------------------------------------------------------

    def _begin_header(self) -> None:
        """Read the held text as the beginning of a call."""
        held, self._held = self._held, ""
        self._state = _State.HEADER
        if self._in_thought:
            self._raw = self._raw[: len(self._raw) - len(held)]
        self._input.extendleft(reversed(held))

    def _header(self, character: str) -> Iterator[Event]:
        self._held += character
        found = self._entries.match(self._held) if self._entries else False
        if isinstance(found, tuple):
            self._enter(found)
        elif not found:
            yield from self._give_back()

    def _enter(self, found: tuple[CallReader, str]) -> None:
        self._reader, rest = found
        self._has_begun = False
        self._state = _State.CALL
        held = self._held
        self._read_again(rest)
        self._held = held[: len(held) - len(rest)]

    def _call(self, character: str) -> Iterator[Event]:
        reader = self._reader
        assert reader is not None, "a call is being read"
        if not self._has_begun:
            self._held += character
        text = reader.push(character)
        self._unread += character
        if reader.failed:
            yield from self._break() if self._has_begun else self._give_back()
            return
        self._unread = "" if text else self._unread
        yield from self._report(reader, text)
        if reader.done:
            rest = reader.rest
            self._state, self._reader, self._unread = _State.AFTER_CALL, None, ""
            self._read_again(rest)

    def _break(self) -> Iterator[Event]:
        """What follows in an invalid call is text."""
        self._reader = None
        if self._in_thought:
            yield from self._quote(len(self._unread))
            return
        unread, self._unread = self._unread, ""
        self._state, self._is_broken = _State.TEXT, True
        self._trims = False
        self._read_again(unread)

    def _report(self, reader: CallReader, text: str) -> Iterator[Event]:
        events: list[Event] = []
        if reader.begun and not self._has_begun:
            self._has_begun, self._held = True, ""
            events.append(CallBegin(self._num_calls, self._make_id(), reader.name))
            self._num_calls += 1
        if text:
            events.append(CallArguments(self._num_calls - 1, text))
        if self._in_thought:
            self._pending += events
        else:
            self._is_blank, self._may_think = False, False
            self._blank = ""
            yield from events

    def _give_back(self) -> Iterator[Event]:
        """Return the held text as text, because it is not a call. Its later characters may begin one."""
        held, self._held = self._held, ""
        self._reader = None
        if self._in_thought:
            yield from self._quote(len(held))
            return
        self._state = _State.TEXT
        mark = self._marks.in_text.at(held)
        if mark in self._marks.ends or mark in self._marks.noise:
            self._held = held
            yield from self._act_without_call(mark)
        else:
            yield from self._say(held[0])
            self._input.extendleft(reversed(held[1:]))

    def _end_of_quotation(self) -> str:
        """The mark at the end of the text that ends the reasoning; empty if there is none."""
        return next((mark for mark in self._marks.thought_ends if self._raw.endswith(mark)), "")

    def _quote(self, num_unread: int) -> Iterator[Event]:
        """Calls inside the reasoning were a quotation: they become reasoning. Read the last characters again."""
        raw, self._raw = self._raw, ""
        self._in_thought, self._state = False, _State.REASONING
        self._num_calls -= sum(isinstance(event, CallBegin) for event in self._pending)
        self._pending = []
        size = max(len(raw) - num_unread, 1)
        yield from self._think(raw[:size])
        self._held = ""
        self._input.extendleft(reversed(raw[size:]))

    def _after_call(self, character: str) -> Iterator[Event]:
        """Drop marks after calls and white space. Start the next call, or end the calls."""
        self._held += character
        if not (text := self._held.lstrip()):
            self._held = ""
            return
        assert self._entries is not None, "there was a call"
        found, footer = self._entries.match(text), self._entries.footer(text)
        if isinstance(found, tuple):
            self._enter(found)
        elif found or footer is True:
            return
        elif isinstance(footer, tuple):
            self._read_again(text[footer[1].end() :])
        elif self._marks.of_ends.at(text):
            self._end()
        elif self._marks.of_ends.may_grow(text):
            return
        elif self._in_thought:
            yield from self._quote(len(self._held))
        else:
            self._state, self._is_blank, self._trims = _State.TEXT, False, False
            self._read_again(text)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finished(self) -> Iterator[Event]:
        yield from self._finished_call()
        if self._in_thought:
            if self._state is _State.AFTER_CALL:
                yield from self._pending
            else:
                yield from self._quoted_at_the_end()
            return
        held, self._held = self._held, ""
        match self._state:
            case _State.REASONING:
                yield from self._think(held)
                if self._keeps_reasoning and self._blank:
                    yield Content(self._blank)
            case _State.TEXT | _State.HEADER:
                if self._is_blank and self._trims:
                    held = held.lstrip()
                elif self._is_blank:
                    held = self._blank + held
                if held:
                    yield Content(held)
            case _State.CALL:
                if held:
                    yield Content(held)

    def _finished_call(self) -> Iterator[Event]:
        """Complete a call after which only marks are missing. What is no call is text, with the marks of text."""
        if self._entries and self._state in (_State.HEADER, _State.AFTER_CALL) and self._held:
            found = self._entries.match(self._held.lstrip() + "\n")  # the end of the answer also ends a line
            if not isinstance(found, bool):
                self._enter((found[0], ""))
        while self._state is _State.HEADER or (self._state is _State.CALL and not self._has_begun):
            reader = self._reader
            text = reader.finish() if reader is not None else ""
            if reader is not None and reader.done:
                yield from self._report(reader, text)
                self._state, self._reader = _State.AFTER_CALL, None
                return
            if self._in_thought:
                return
            yield from self._give_back()
            yield from self._read()
        if self._state is _State.CALL and self._reader is not None:
            text = self._reader.finish()
            yield from self._report(self._reader, text)
            if self._reader.done:
                self._state = _State.AFTER_CALL

    def _quoted_at_the_end(self) -> Iterator[Event]:
        """A call that the reasoning does not complete is a quotation, too. Its text may end the reasoning."""
        self._marks.forget_calls()
        self._held = ""
        yield from self._quote(len(self._raw) - 1)
        yield from self._read()
        yield from self._finished()
