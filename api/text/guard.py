"""Keeps what a client writes from contributing to control tokens, before a template is rendered."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from api.text.literals import literals

_SURROGATE = re.compile("[\ud800-\udfff]")
_PRIVATE_RANGES = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")

Span = tuple[int, int]


class TemplateRefusal(ValueError):  # noqa: N818 - it says who is to blame
    """The model's template cannot render this conversation, and what it says about it."""


class Aside:
    """Texts of a client that must not contribute to control tokens, each behind a private-use character."""

    def __init__(self, guard: "Guard", texts: Callable[[], Sequence[str]]) -> None:
        """`texts`: all that may be rendered, whose characters cannot be used."""
        self.texts: dict[str, str] = {}
        """By character."""
        self._guard = guard
        self._chars: dict[str, str] = {}
        self._used = texts
        self._unused: Iterator[str] | None = None

    def put(self, value: Any) -> Any:
        """A copy of JSON-like data with such texts replaced. Keys stand between quotes, or are read by the template."""
        if isinstance(value, str):
            return self._text(value, self._guard.find)
        if isinstance(value, Mapping):
            return {self._text(str(key), self._guard.find_whole): self.put(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.put(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError(f"{type(value).__name__} is nothing that JSON has")  # nothing inside would be guarded

    def _text(self, text: str, find: Callable[[str], list[Span]]) -> str:
        text = without_surrogates(text)
        spans = find(text)
        if not spans:
            return text
        if self._unused is None:
            self._unused = _unused_characters(self._used())
        changed = _replace(text, spans, self._chars, self._unused)
        self.texts = {char: text for text, char in self._chars.items()}
        return changed


class Guard:
    """Finds what a client's text must not contribute to control tokens.

    That is each whole control text; the text's end, where it is the beginning of one; and its beginning, where it
    is the end of one, or all of it where it lies inside one. The last two matter only where what the template
    itself writes may end in the beginning of a control text, as in `'<|' + message.name + '|>'`: if a client's
    text begins it, then that text's end is put aside. A template that deletes from the middle of a client's text
    can still join its pieces.
    """

    def __init__(self, texts: Sequence[str], written: Sequence[str]) -> None:
        """`written`: all that the template can write by itself."""
        self._whole = re.compile(literals(texts))
        self._longest = max(map(len, texts), default=0)
        self._first = frozenset(text[0] for text in texts)
        self._beginnings = frozenset(text[:i] for text in texts for i in range(1, len(text)))
        self._ends: frozenset[str] = frozenset()
        self._joined = ""
        if any(self._end(text, 0) for text in written):
            self._ends = frozenset(text[i:] for text in texts for i in range(1, len(text)))
            self._joined = "\0".join(texts)

    def find(self, text: str) -> list[Span]:
        """What to put aside of a client's text: start and end, in order, apart from each other."""
        spans = self.find_whole(text)
        if end := self._end(text, spans[-1][1] if spans else 0):
            spans.append(end)
        if self._ends and (start := self._start(text, spans[0][0] if spans else len(text))):
            spans.insert(0, start)
        return spans

    def find_whole(self, text: str) -> list[Span]:
        """Only whole control texts, for what the template's own text never touches."""
        return [match.span() for match in self._whole.finditer(text)]

    def _end(self, text: str, after: int) -> Span | None:
        """The longest end of the stripped text, from `after` on, that begins a control text."""
        end = len(text.rstrip())
        for start in range(max(after, end - self._longest + 1), end):
            if text[start] in self._first and text[start:end] in self._beginnings:
                return start, end
        return None

    def _start(self, text: str, before: int) -> Span | None:
        """The longest start of the stripped text, up to `before`, that ends a control text or is inside one."""
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        if start < end <= before and end - start < self._longest and text[start:end] in self._joined:
            return start, end
        for end in range(min(before, start + self._longest - 1), start, -1):
            if text[start:end] in self._ends:
                return start, end
        return None


def without_surrogates(text: str) -> str:
    # JSON can carry halves of surrogate pairs; UTF-8 cannot. Encoding is the fastest way to look for them.
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def _unused_characters(texts: Sequence[str]) -> Iterator[str]:
    used = {char for text in texts for char in _PRIVATE.findall(text)}
    return (char for char in map(chr, chain(*_PRIVATE_RANGES)) if char not in used)


def _replace(text: str, spans: Sequence[Span], chars: dict[str, str], unused: Iterator[str]) -> str:
    """Put `spans` aside, each as the character that `chars` has, or from now on has, for its text."""
    pieces: list[str] = []
    position = 0
    for start, end in spans:
        aside = text[start:end]
        if aside not in chars:
            if (char := next(unused, None)) is None:
                raise TemplateRefusal("the messages use every private-use character")
            chars[aside] = char
        pieces += text[position:start], chars[aside]
        position = end
    return "".join(pieces) + text[position:]
