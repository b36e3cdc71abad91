"""Tokens to text that may be sent: whole characters, and nothing that may yet turn out to be a stop string."""

import codecs
from collections.abc import Callable, Iterator, Sequence


class Detokenizer:
    """The text of one stream of tokens, up to its first stop string.

    The stop string that is complete first ends the text, as generation ends there; of several that one character
    completes, the one that starts first. So the text does not depend on how it is cut into tokens or pushes.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str]) -> None:
        """`piece`: the bytes of a token, possibly a part of a character. Empty stop strings are ignored."""
        self.stop: str | None = None
        """The stop string that was found; there will be no more text."""
        self.num_tokens = 0
        """Tokens consumed, the one that completed the stop string included, those after it not."""
        self._piece = piece
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = [_Progress(stop) for stop in stops if stop]
        self._first = frozenset(stop[0] for stop in stops if stop)
        self._held = ""  # as long as the most advanced of the stop strings

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, tokens: Sequence[int]) -> str:
        """The text that may be sent now that these tokens have come; '' once stopped."""
        if self._stops:
            return "".join(self._until_stopped(tokens))
        self.num_tokens += len(tokens)
        return self._decode(b"".join(map(self._piece, tokens)))

    def finish(self) -> str:
        """What was held back, as no more tokens come."""
        if self.stopped:
            return ""
        return self._release(self._decode(b"", True)) + self._held

    def _until_stopped(self, tokens: Sequence[int]) -> Iterator[str]:
        for token in tokens:
            if self.stopped:
                return
            self.num_tokens += 1
            yield self._release(self._decode(self._piece(token)))

    def _release(self, text: str) -> str:
        if not self._held and self._first.isdisjoint(text):
            return text
        whole = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            found = ""
            for stop in self._stops:
                if stop.advance(character):
                    found = max(found, stop.text, key=len)
            if found:
                self.stop = found
                self._held = ""
                return whole[: end - len(found)]
        safe = len(whole) - max((stop.matched for stop in self._stops), default=0)
        self._held = whole[safe:]
        return whole[:safe]


class _Progress:
    """How much of a stop string the text so far ends with (Knuth, Morris and Pratt's automaton)."""

    __slots__ = ("_shorter", "matched", "text")

    def __init__(self, stop: str) -> None:
        self.text = stop
        self.matched = 0
        self._shorter = [0] * len(stop)  # by end: the longest proper prefix of the stop that ends there too
        for i in range(1, len(stop)):
            length = self._shorter[i - 1]
            while length and stop[i] != stop[length]:
                length = self._shorter[length - 1]
            self._shorter[i] = length + (stop[i] == stop[length])

    def advance(self, character: str) -> bool:
        """Whether this character completes the stop string, which ends the use of this object."""
        matched = self.matched
        while matched and character != self.text[matched]:
            matched = self._shorter[matched - 1]
        self.matched = matched + (character == self.text[matched])
        return self.matched == len(self.text)
