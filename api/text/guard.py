"""Keeps clients' text from becoming part of control tokens when a template is rendered."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from api.text.literals import literals

_SURROGATE = re.compile("[\ud800-\udfff]")
_PRIVATE_RANGES = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")

Span = tuple[int, int]


class TemplateRefusal(ValueError):  # noqa: N818 - a refusal of the template, not an error of the server
    """The model's template cannot render this conversation. The message is the reason."""


class Mark(str):
    """A text of the server's own. Control tokens in it are meant as such."""

    __slots__ = ()


FUNCTION: Final = Mark("function")
"""The type of tools and calls. Templates compare it, so it must stay as it is if it is a part of a control token."""


class Pieces(tuple[str, ...]):
    """One text in pieces: marks, and clients' texts between them."""

    __slots__ = ()


def joined(separator: str, texts: Iterable[str | Pieces]) -> str | Pieces:
    """The texts with a separator between them, in pieces if one of them is."""
    listed = list(texts)
    if all(isinstance(text, str) for text in listed):
        return separator.join(map(str, listed))
    parts: list[str] = []
    for number, text in enumerate(listed):
        parts += [Mark(separator)] if number else []
        parts += [text] if isinstance(text, str) else text
    return Pieces(parts)


class Aside:
    """Replaces client texts that must not be part of control tokens by private-use characters."""

    def __init__(self, guard: "Guard", texts: Callable[[], Sequence[str]]) -> None:
        """`texts` returns all texts that may be rendered. The private-use characters in them are not used."""
        self.texts: dict[str, str] = {}
        """The replaced texts, by private-use character."""
        self._guard = guard
        self._chars: dict[str, str] = {}
        self._used = texts
        self._unused: Iterator[str] | None = None

    def put(self, value: Any) -> Any:
        """A copy of JSON-like data with such texts replaced.

        In keys only whole control texts are replaced, because keys are rendered in quotes or read by the template.
        Raises TypeError for other data, TemplateRefusal if no private-use character is left.
        """
        if isinstance(value, Mark):
            return str(value)
        if isinstance(value, str):
            return self._text(value, self._guard.find)
        if isinstance(value, Pieces):
            return "".join(map(self.put, value))
        if isinstance(value, Mapping):
            return {self._text(str(key), self._guard.find_whole): self.put(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.put(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError(f"{type(value).__name__} is not a JSON type")  # its content would not be guarded

    def unused(self) -> str:
        """A private-use character that no text has and that replaces none. Raises TemplateRefusal if none is left."""
        return _next(self._characters())

    def _characters(self) -> Iterator[str]:
        if self._unused is None:
            self._unused = _unused_characters(self._used())
        return self._unused

    def _text(self, text: str, find: Callable[[str], list[Span]]) -> str:
        text = without_surrogates(text)
        spans = find(text)
        if not spans:
            return text
        changed = _replace(text, spans, self._chars, self._characters())
        self.texts = {char: text for text, char in self._chars.items()}
        return changed


class Guard:
    """Finds the parts of a client's text that must not be part of control tokens.

    These are: every whole control text; an end of the text that is the start of a control text; a start of the text
    that is the end of one; and the whole text if it is the middle of one. The last two matter only if the template's
    own text can end with the start of a control text, as in `'<|' + message.name + '|>'`. If a client's text has that
    start, it is found as an end of the client's text. One case is not covered: a template that deletes from the middle
    of a client's text can join the remaining pieces.
    """

    def __init__(self, texts: Sequence[str], written: Sequence[str]) -> None:
        """`texts`: the control texts. `written`: all texts that the template itself can write."""
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
        """The parts of a client's text to replace, as (start, end), in order and without overlap."""
        spans = self.find_whole(text)
        if end := self._end(text, spans[-1][1] if spans else 0):
            spans.append(end)
        if self._ends and (start := self._start(text, spans[0][0] if spans else len(text))):
            spans.insert(0, start)
        return spans

    def find_whole(self, text: str) -> list[Span]:
        """The whole control texts only, for a text that never adjoins the template's own text."""
        return [match.span() for match in self._whole.finditer(text)]

    def _end(self, text: str, after: int) -> Span | None:
        """The longest suffix of the stripped text, from `after` on, that starts a control text."""
        end = len(text.rstrip())
        for start in range(max(after, end - self._longest + 1), end):
            if text[start] in self._first and text[start:end] in self._beginnings:
                return start, end
        return None

    def _start(self, text: str, before: int) -> Span | None:
        """The longest prefix of the stripped text, up to `before`, that ends a control text or is inside one."""
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        if start < end <= before and end - start < self._longest and text[start:end] in self._joined:
            return start, end
        for end in range(min(before, start + self._longest - 1), start, -1):
            if text[start:end] in self._ends:
                return start, end
        return None


def without_surrogates(text: str) -> str:
    # JSON can contain lone surrogates, UTF-8 cannot. Encoding is the fastest way to find them.
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def _unused_characters(texts: Sequence[str]) -> Iterator[str]:
    used = {char for text in texts for char in _PRIVATE.findall(text)}
    return (char for char in map(chr, chain(*_PRIVATE_RANGES)) if char not in used)


def _next(unused: Iterator[str]) -> str:
    if (char := next(unused, None)) is None:
        raise TemplateRefusal("the messages use every private-use character")
    return char


def _replace(text: str, spans: Sequence[Span], chars: dict[str, str], unused: Iterator[str]) -> str:
    """Replace `spans` by the characters of their texts in `chars`. Adds missing characters from `unused`."""
    pieces: list[str] = []
    position = 0
    for start, end in spans:
        aside = text[start:end]
        if aside not in chars:
            chars[aside] = _next(unused)
        pieces += text[position:start], chars[aside]
        position = end
    return "".join(pieces) + text[position:]
