"""Finds which parts of texts belong together by comparing them, cut only where a mark or a word begins or ends."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from api.text.dialects.syntax import Form, Slot

_UNIT: Final = re.compile(r"<[^<>\s][^<>\n]*>|\[/?[A-Z][A-Z_ ]*\]|\w+|\s|.", re.DOTALL)
_PUNCTUATION: Final = "\"',.?)"
"""Ordinary text may begin with these. So does what Python writes behind a text in an object."""
_JSON: Final = re.compile(r'"[^"]*"|[\s{}\[\]":,]')

SLOTS: Final = {slot: chr(0x10FF00 + i) for i, slot in enumerate(Slot)}
"""A private-use character for each slot. Those of the templates' guard come from the other end of the range."""
_BY_CHAR: Final = {char: slot for slot, char in SLOTS.items()}
ANY_SLOT: Final = re.compile(f"[{''.join(_BY_CHAR)}]")
_ANY_SLOT_KEPT: Final = re.compile(f"([{''.join(_BY_CHAR)}])")


def units(text: str) -> list[str]:
    """The marks, words, white space and other characters of a text."""
    return _UNIT.findall(text)


def common_start(*texts: str) -> str:
    """The longest common beginning that ends between two units in each text."""
    return "".join(_shared([units(text) for text in texts]))


def common_end(*texts: str) -> str:
    """The longest common end that begins between two units in each text."""
    return "".join(reversed(_shared([units(text)[::-1] for text in texts])))


def words(text: str) -> list[str]:
    """The units that are not white space."""
    return [unit for unit in units(text) if not unit.isspace()]


def shared_words(*texts: str) -> list[str]:
    """The words that all texts begin with. A mark and the word behind it belong together."""
    shared = _shared([words(text) for text in texts])
    follow = [behind(text, shared)[:1] for text in texts]
    return shared[:-1] if shared and num_marks(shared[-1]) and all(map(str.isalnum, follow)) else shared


def behind(text: str, start: Sequence[str]) -> str:
    """The text behind the words that it begins with, without white space around it."""
    parts = units(text)
    for word in start:
        while parts and parts[0].isspace():
            del parts[0]
        if parts[:1] != [word]:
            break
        del parts[0]
    return "".join(parts).strip()


def _shared(lists: list[list[str]]) -> list[str]:
    """What all of these lists begin with."""
    return [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*lists, strict=False))]


def is_mark(text: str) -> bool:
    """Whether this is a mark rather than ordinary text."""
    text = text.strip()
    has_length = len(text) > 1 or not text.isascii()
    return has_length and not text[:1].isalnum() and text[:1] not in _PUNCTUATION


def is_bare(text: str) -> bool:
    """Whether a text in front of a call is nothing but the punctuation of JSON."""
    return not _JSON.sub("", text)


def num_marks(text: str) -> int:
    return sum(len(unit) > 2 and not unit[0].isalnum() for unit in units(text))


def first_mark(text: str) -> str:
    """A mark at the start of a text: the first of adjacent ones; marks with a word between them belong together.

    Without such brackets it is the rest of the line.
    """
    text = text.strip()
    if not is_mark(text):
        return ""
    parts = units(text)
    if not num_marks(parts[0]):
        return text.partition("\n")[0].rstrip()
    for i, (part, following) in enumerate(zip(parts, [*parts[1:], ""], strict=True)):
        if following.isspace() or (num_marks(part) and not following[:1].isalnum()):
            return "".join(parts[: i + 1])
    return text


class Repeated(NamedTuple):
    """The parts of `begin (item_begin ITEM item_end) separator (item_begin ITEM item_end) ... end`."""

    begin: str
    item_begin: str
    item_end: str
    separator: str
    end: str


def repeated(before: str, middle: str, after: str) -> Repeated:
    """Split the texts before the first of two items, between them and after the second, which gives these again."""
    longest_begin, longest_end = common_end(before, middle), common_start(after, middle)
    earliest, latest = len(middle) - len(longest_begin), len(longest_end)
    if earliest >= latest:
        item_begin, item_end = longest_begin.lstrip(), longest_end.rstrip()
    else:  # a text that may end an item or begin one, such as `<|sep|>`
        cut = _cut(middle, earliest, latest)
        item_begin, item_end = middle[cut:].lstrip(), middle[:cut].rstrip()
    return Repeated(
        before[: len(before) - len(item_begin)],
        item_begin,
        item_end,
        middle[len(item_end) : len(middle) - len(item_begin)],
        after[len(item_end) :],
    )


def _cut(middle: str, earliest: int, latest: int) -> int:
    """Where an item ends: with a mark, not behind a word, and where the brackets of marks are closed."""
    cut = earliest
    for unit in ["", *units(middle[earliest:latest])]:
        cut += len(unit)
        if not cut:
            continue
        end, begin = middle[:cut], middle[cut:]
        is_open = any(end[i:].count("<") > end[i:].count(">") for i in range(len(end)))
        closes = any(begin[:i].count(">") > begin[:i].count("<") for i in range(len(begin) + 1))
        if not (end[-1:].isalnum() or is_open or closes):
            return cut
    return latest


def slot_positions(text: str) -> list[int]:
    return [match.start() for match in ANY_SLOT.finditer(text)]


def as_form(text: str) -> Form:
    """The form that a text with the characters of slots denotes."""
    return tuple(_BY_CHAR.get(part, part) for part in _ANY_SLOT_KEPT.split(text) if part)


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def digits(text: str) -> Iterator[re.Match[str]]:
    """The whole numbers in a text."""
    return re.finditer(r"(?<![a-zA-Z0-9.])\d+(?![a-zA-Z0-9]|\.\d)", text)
