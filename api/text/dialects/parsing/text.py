"""Separates the text of an answer from its reasoning, one character at a time."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto

from api.text.dialects.events import Content, Event, Reasoning
from api.text.dialects.parsing.meanings import Meanings


class State(Enum):
    """What is being read."""

    TEXT = auto()
    REASONING = auto()
    HEADER = auto()
    """Text that may begin a call."""
    CALL = auto()
    AFTER_CALL = auto()


class TextParser(ABC):
    """Reads text and reasoning, up to the marks that may begin a call."""

    def __init__(self, marks: Meanings, *, is_thinking: bool, keeps_reasoning: bool) -> None:
        self._marks = marks
        self._keeps_reasoning = keeps_reasoning
        self._state = State.REASONING if is_thinking else State.TEXT
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

    @abstractmethod
    def _may_begin_call(self) -> bool:
        """Whether the held text, with which the text begins, may be a call without a mark in front of it."""

    @abstractmethod
    def _begin_call(self) -> None:
        """Read the held text as the beginning of a call."""

    # -- text --------------------------------------------------------------------------------------------------------

    def _text(self, character: str) -> Iterator[Event]:
        if self._is_blank and not self._held and character.isspace():
            self._blank += character
            return
        self._held += character
        if self._is_blank and self._may_begin_call():
            self._begin_call()
            return
        marks = self._marks.in_text
        while self._held and not marks.may_grow(self._held):
            mark = marks.at(self._held)
            if mark and self._acts(mark):
                yield from self._act(mark)
                return
            yield from self._say(self._held[0])
            self._held = self._held[1:]

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
            self._begin_call()
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

    def _end(self) -> None:
        self._held = self._blank = ""
        self.ended = True
        self._input.clear()

    # -- reasoning ---------------------------------------------------------------------------------------------------

    def _begin_reasoning(self, mark: str) -> Iterator[Event]:
        self._state, self._blank, self._is_blank, self._may_think = State.REASONING, "", True, False
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
                self._begin_call()
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
        self._state, self._blank, self._is_blank = State.TEXT, "", True
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

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finished_text(self) -> Iterator[Event]:
        """The text that was held back."""
        held, self._held = self._held, ""
        is_reasoning = self._state is State.REASONING and not self._keeps_reasoning
        if held in (self._marks.thought_ends if is_reasoning else self._marks.ends):
            held = ""  # a mark that is the beginning of a longer one
        if self._state is State.REASONING:
            yield from self._think(held)
            if self._keeps_reasoning and self._blank:
                yield Content(self._blank)
            return
        if self._is_blank:
            held = held.lstrip() if self._trims else self._blank + held
        if held:
            yield Content(held)
