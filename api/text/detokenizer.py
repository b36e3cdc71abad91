"""Converts tokens to text. Holds back incomplete characters and possible starts of stop strings."""

import codecs
from collections.abc import Callable, Iterator, Sequence


class Detokenizer:
    """The text of one stream of tokens, up to its first stop string.

    The text ends at the stop string that is completed first. If one character completes several, the one that starts
    first counts. So the result does not depend on how the text is split into tokens or calls.
    """

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str]) -> None:
        """`piece` returns the bytes of a token, which may end inside a character. Empty stop strings are ignored."""
        self.stop: str | None = None
        """The stop string that was found. No text follows it."""
        self.num_tokens = 0
        """Number of consumed tokens. The token that completes the stop string counts, later ones do not."""
        self._piece = piece
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = [_Progress(stop) for stop in stops if stop]
        self._first = frozenset(stop[0] for stop in stops if stop)
        self._held = ""  # text that may be the start of a stop string

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, tokens: Sequence[int]) -> str:
        """Consume tokens. Returns the text that can be sent now; '' after a stop string."""
        if self._stops:
            return "".join(self._until_stopped(tokens))
        self.num_tokens += len(tokens)
        return self._decode(b"".join(map(self._piece, tokens)))

    def finish(self) -> str:
        """End the stream. Returns the text that was held back."""
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
    """How many characters of a stop string the text ends with (Knuth-Morris-Pratt automaton)."""

    __slots__ = ("_shorter", "matched", "text")

    def __init__(self, stop: str) -> None:
        self.text = stop
        self.matched = 0
        self._shorter = [0] * len(stop)  # by end: length of the longest proper prefix that also ends there
        for i in range(1, len(stop)):
            length = self._shorter[i - 1]
            while length and stop[i] != stop[length]:
                length = self._shorter[length - 1]
            self._shorter[i] = length + (stop[i] == stop[length])

    def advance(self, character: str) -> bool:
        """Add a character. Returns whether it completes the stop string; no more characters may be added then."""
        matched = self.matched
        while matched and character != self.text[matched]:
            matched = self._shorter[matched - 1]
        self.matched = matched + (character == self.text[matched])
        return self.matched == len(self.text)
