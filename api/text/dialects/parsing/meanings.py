"""What the marks of a syntax mean where they occur."""

from collections.abc import Collection, Iterable
from typing import Final

from api.text.dialects.parsing.patterns import Marks
from api.text.dialects.syntax import AnswerSyntax, Thoughts

_NO_THOUGHTS: Final = Thoughts((), ())


class Meanings:
    """The marks by their meaning, and the sets of marks to look for. White space before a mark is no part of it."""

    def __init__(self, syntax: AnswerSyntax, triggers: Collection[str], *, is_thinking: bool) -> None:
        """`triggers`: the marks that may begin a call. `is_thinking`: the answer starts inside the reasoning."""
        thoughts = syntax.thoughts or _NO_THOUGHTS
        begins = _stripped(syntax.content.begins if syntax.content else ())
        content_ends = _stripped(syntax.content.ends if syntax.content else ())
        self.triggers = frozenset(triggers)
        self.thought_begins = _stripped(thoughts.begins)
        self.thought_ends = _stripped(thoughts.ends)
        self.thoughts_anywhere = thoughts.anywhere
        self.may_begin_with_end = syntax.thoughts is not None and (thoughts.unopened or is_thinking)
        """Whether an answer may begin with the end mark of a thought."""
        self.words = frozenset(mark for mark in begins if mark[0].isalnum())
        """The marks before the text that are words. They have a meaning only where the text begins."""
        self.text_begins = begins - self.words
        self.noise = _stripped(syntax.noise) | begins | content_ends
        """The marks that are dropped."""
        self.ends = _stripped(syntax.ends)
        """The marks that end the answer."""
        self.of_ends = Marks(self.ends)
        self.in_text = Marks([*triggers, *self.thought_begins, *self.thought_ends, *self.noise, *self.ends])
        in_thoughts = [*triggers, *self.thought_begins, *self.thought_ends, *self.text_begins, *self.ends]
        self.in_thoughts = Marks(in_thoughts)

    def forget_calls(self) -> None:
        """Look for no more calls in reasoning."""
        self.in_thoughts = Marks([*self.thought_ends, *self.ends])


def _stripped(marks: Iterable[str]) -> frozenset[str]:
    return frozenset(mark.lstrip() for mark in marks)
