"""Parses answers into events, one character at a time, so that the pieces of an answer do not matter."""

from collections.abc import Callable, Iterator

from api.text.dialects.events import CallArguments, CallBegin, Event, merged
from api.text.dialects.ids import call_id
from api.text.dialects.parsing.calls import CallReader
from api.text.dialects.parsing.entries import Entries
from api.text.dialects.parsing.meanings import Meanings
from api.text.dialects.parsing.text import State, TextParser
from api.text.dialects.syntax import AnswerSyntax
from api.text.dialects.tools import ToolUse


class AnswerParser(TextParser):
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
        self._bare = syntax.calls is not None and syntax.calls.bare
        triggers = self._entries.triggers if self._entries else ()
        marks = Meanings(syntax, triggers, is_thinking=is_thinking)
        super().__init__(marks, is_thinking=is_thinking, keeps_reasoning=keeps_reasoning)
        self._make_id = make_id
        self._num_calls = 0
        # the calls that are being read
        self._reader: CallReader | None = None
        self._has_begun = False
        """Whether the call was reported."""
        self._unread = ""
        """The text of a call after what was reported of it."""
        self._is_broken = False
        """Whether a call that was reported turned out to be invalid."""
        # calls inside the reasoning
        self._in_thought = False
        """Whether calls are read inside the reasoning. Only the end of the answer shows that they are no quotation."""
        self._raw = ""
        """Their text."""
        self._pending: list[Event] = []
        """Their events."""

    @property
    def is_reasoning(self) -> bool:
        return self._state is State.REASONING or self._in_thought

    @property
    def is_calling(self) -> bool:
        """Whether a call that was reported with CallBegin is not complete."""
        return self._is_broken or (self._state is State.CALL and self._has_begun)

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
                if self._state is State.CALL and (end := self._end_of_quotation()):
                    yield from self._quote(len(end))
                    continue
            match self._state:
                case State.TEXT:
                    yield from self._text(character)
                case State.REASONING:
                    yield from self._reason(character)
                case State.HEADER:
                    yield from self._header(character)
                case State.CALL:
                    yield from self._call(character)
                case State.AFTER_CALL:
                    yield from self._after_call(character)

    def _read_again(self, text: str) -> None:
        super()._read_again(text)
        if self._in_thought:
            self._raw = self._raw[: len(self._raw) - len(text)]

    def _may_begin_call(self) -> bool:
        return self._bare and self._entries is not None and self._entries.match(self._held) is not False

    def _begin_call(self) -> None:
        held, self._held = self._held, ""
        if self._state is State.REASONING and not self._is_blank:
            self._in_thought, self._raw = True, ""
        self._state = State.HEADER
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
        self._state = State.CALL
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
            self._state, self._reader, self._unread = State.AFTER_CALL, None, ""
            self._read_again(rest)

    def _break(self) -> Iterator[Event]:
        """What follows in an invalid call is text."""
        self._reader = None
        if self._in_thought:
            yield from self._quote(len(self._unread))
            return
        unread, self._unread = self._unread, ""
        self._state, self._is_broken = State.TEXT, True
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
        self._state = State.TEXT
        mark = self._marks.in_text.at(held)
        if mark in self._marks.ends or mark in self._marks.noise:
            self._held = held
            yield from self._act_without_call(mark)
        elif self._marks.in_text.may_grow(held):
            self._held = held
        else:
            yield from self._say(held[0])
            self._input.extendleft(reversed(held[1:]))

    def _end_of_quotation(self) -> str:
        """The mark at the end of the text that ends the reasoning; empty if there is none."""
        return next((mark for mark in self._marks.thought_ends if self._raw.endswith(mark)), "")

    def _quote(self, num_unread: int) -> Iterator[Event]:
        """Calls inside the reasoning were a quotation: they become reasoning. Read the last characters again."""
        raw, self._raw = self._raw, ""
        self._in_thought, self._state = False, State.REASONING
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
            self._state, self._is_blank, self._trims = State.TEXT, False, False
            self._read_again(text)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finished(self) -> Iterator[Event]:
        yield from self._finished_call()
        if self._in_thought:
            if self._state is State.AFTER_CALL:
                yield from self._pending
            else:
                yield from self._quoted_at_the_end()
            return
        if self._state is not State.AFTER_CALL:  # there, only the beginning of a mark is held back
            yield from self._finished_text()

    def _finished_call(self) -> Iterator[Event]:
        """Complete a call after which only marks are missing. What is no call is text, with the marks of text."""
        if self._entries and self._state in (State.HEADER, State.AFTER_CALL) and self._held:
            found = self._entries.match(self._held.lstrip() + "\n")  # the end of the answer also ends a line
            if not isinstance(found, bool):
                self._enter((found[0], ""))
        while self._state is State.HEADER or (self._state is State.CALL and not self._has_begun):
            reader = self._reader
            text = reader.finish() if reader is not None else ""
            if reader is not None and reader.done:
                yield from self._report(reader, text)
                self._state, self._reader = State.AFTER_CALL, None
                return
            if self._in_thought:
                return
            yield from self._give_back()
            yield from self._read()
        if self._state is State.CALL and self._reader is not None:
            text = self._reader.finish()
            yield from self._report(self._reader, text)
            if self._reader.done:
                self._state = State.AFTER_CALL

    def _quoted_at_the_end(self) -> Iterator[Event]:
        """A call that the reasoning does not complete is a quotation, too. Its text may end the reasoning."""
        self._marks.forget_calls()
        self._held = ""
        yield from self._quote(len(self._raw) - 1)
        yield from self._read()
        yield from self._finished()
