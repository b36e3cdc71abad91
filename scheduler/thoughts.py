"""Limits the reasoning in an answer: counts its tokens, and then forces the mark that ends it.

A grammar cannot do this. llguidance counts tokens only for a rule without an end mark of its own, and its counting rule
with `stop` panics when the model writes the mark itself. The counter also works for answers without a grammar.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from scheduler.failures import RequestError
from scheduler.messages import ThoughtLimit

MAX_CHARACTER: Final = 4
"""Bytes of the longest character in UTF-8."""

Mask = NDArray[np.int32]
"""Packed bits of a grammar: bit i % 32 of word i // 32 is 1 if token i may come next."""


class ThoughtCounter:
    """Counts the reasoning tokens of one answer. Its state depends on the answer's tokens only.

    Marks are found in the text, because models write the same mark with different tokens. A character whose bytes are
    in several tokens is completed before the end mark is forced. If the model begins another thought after that, what
    begins the text is forced, too: otherwise it could begin thoughts until `max_tokens`.
    """

    def __init__(self, limit: ThoughtLimit, piece: Callable[[int], bytes]) -> None:
        """`piece` returns the text of a token, also of a control token."""
        self._limit = limit
        self._piece = piece
        self._begins = [mark.encode() for mark in limit.begins]
        self._ends = [mark.encode() for mark in limit.ends]
        self._longest = max(map(len, [*self._begins, *self._ends, bytes(MAX_CHARACTER)]))
        self._end_pieces = [piece(token) for token in limit.end]
        self._is_open = limit.is_open
        self._can_begin = bool(self._begins)
        """Whether reasoning may begin here or later."""
        self._text = b""
        """The last bytes of the answer, since the last mark."""
        self._left = limit.budget
        self._overdue = 0
        """Tokens after the budget that complete a character."""
        self._forced: list[int] = []
        """The next tokens, last one first: the rest of the end mark, and the mark that begins the text."""
        self._num_then = 0
        """How many tokens after the end mark begin the text."""
        self._has_closed = False
        """Whether the end mark was forced before."""
        self._update_forced()

    def copy(self) -> Self:
        """Returns an independent counter in the same state, to look ahead."""
        other = copy.copy(self)
        other._forced = self._forced.copy()
        return other

    @property
    def forced(self) -> int | None:
        """The token that must come next; None if any token may come next."""
        return self._forced[-1] if self._forced else None

    def accept(self, token: int) -> None:
        """Consume the next token of the answer.

        If it is not the forced one, a grammar did not allow that. Then no more tokens are forced for this reasoning.
        """
        if not (self._is_open or self._can_begin or self._forced):
            return
        self._text += self._piece(token)
        if self._forced:
            self._take(token)
            return
        was_open = self._is_open
        self._read_marks()
        if was_open and self._is_open:
            self._left -= 1
        self._update_forced()
        self._text = self._text[-2 * self._longest :]

    def _take(self, token: int) -> None:
        """Consume a token at a position where one is forced."""
        is_forced = token == self._forced.pop()
        if not is_forced:
            self._forced.clear()
        if not self._is_open:  # after the end mark
            self._read_marks()
            self._update_forced()
        elif not is_forced or len(self._forced) == self._num_then:
            self._close(b"")

    def _read_marks(self) -> None:
        """Find the marks in the text, one after another."""
        while True:
            place, mark = _first(self._text, self._ends if self._is_open else self._begins)
            before = self._text if place < 0 else self._text[:place]
            if not self._is_open:
                self._can_begin = self._can_begin and (self._limit.anywhere or self._may_begin(before, place))
                if not self._can_begin:
                    return
            if place < 0:
                return
            rest = self._text[place + len(mark) :]
            if self._is_open:
                self._close(rest)
            else:
                self._is_open, self._text = True, rest

    def _may_begin(self, before: bytes, place: int) -> bool:
        """Whether only white space, and perhaps a part of a mark, is at the beginning of the answer."""
        text = before.lstrip()
        return not text or (place < 0 and any(mark.startswith(text) for mark in self._begins))

    def _close(self, rest: bytes) -> None:
        self._is_open, self._text, self._overdue = False, rest, 0
        self._can_begin = bool(self._begins) and self._limit.anywhere

    def _update_forced(self) -> None:
        if not self._is_open or self._left > 0:
            return
        if _is_cut(self._text) and self._overdue < MAX_CHARACTER - 1:
            self._overdue += 1
            return
        then = self._limit.then if self._has_closed else []
        self._forced = [*self._limit.end[self._num_written() :], *then][::-1]
        self._num_then, self._has_closed = len(then), True

    def _num_written(self) -> int:
        """How many tokens of the end mark the model has written itself, or tokens with the same text."""
        pieces = self._end_pieces
        return next((n for n in range(len(pieces) - 1, 0, -1) if self._text.endswith(b"".join(pieces[:n]))), 0)


def with_forced(
    counters: Sequence[ThoughtCounter | None],
    sampled: list[int | RequestError],
    masks: Sequence[Mask | RequestError | None] = (),
) -> list[int | RequestError]:
    """Returns the sampled tokens, with the forced ones in their place. A row's error stays.

    `masks` has an entry per row, or is empty. A token that a mask does not allow is not forced.
    """
    if not any(counters):
        return sampled
    rows = zip(counters, sampled, masks or [None] * len(sampled), strict=True)
    return [token if counter is None else _chosen(counter.forced, token, mask) for counter, token, mask in rows]


def _chosen(forced: int | None, sampled: int | RequestError, mask: Mask | RequestError | None) -> int | RequestError:
    if forced is None or isinstance(sampled, RequestError):
        return sampled
    if mask is not None and not isinstance(mask, RequestError) and not mask[forced // 32] >> (forced % 32) & 1:
        return sampled
    return forced


def _first(text: bytes, marks: Sequence[bytes]) -> tuple[int, bytes]:
    """The first place of a mark, and the mark, the longest one at that place; -1 and b"" if there is none."""
    found = [(place, -len(mark), mark) for mark in marks if (place := text.find(mark)) >= 0]
    place, _, mark = min(found, default=(-1, 0, b""))
    return place, mark


def _is_cut(text: bytes) -> bool:
    """Whether the text ends inside a character."""
    for length in range(1, min(MAX_CHARACTER, len(text)) + 1):
        byte = text[-length]
        if byte & 0xC0 != 0x80:
            return length < (1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else MAX_CHARACTER)
    return False
