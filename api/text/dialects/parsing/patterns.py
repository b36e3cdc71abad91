"""Patterns that match the forms of a syntax piece by piece, with white space where models put it."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import regex

from api.text.dialects.syntax import Form, Slot

_UNITS: Final = re.compile(r"\s+|(?<=>)(?=\S)|(?=<)|(?<=[\[\]{}:,()=])(?=\S)|(?=[\[\]{}:,()=])")
"""Where a literal text may have more or less white space."""
_MARKS: Final = re.compile(
    r"\]<\]\w+\[>\[(?:</?[^<>\s]*>?)?"  # MiniMax's prefix and the tag after it
    r"|<[^<>\s]*>(?:[^\s<>\[\]{}]+(?:<[^<>\s]*>)?)?|<[^<>\s]*|\[[^\[\]\s<>]*\]|[\[\]{}]|[^\s<\[\]{}]+"
)
_KEY_CHARACTER: Final = r"[^\s<>\"'=:,{}()\[\]|]"
_KEY: Final = rf"(?!/){_KEY_CHARACTER}{{1,128}}"
_KEY_END: Final = r"(?=[\s<>\"'=:,{}()\[\]|])"
_ANY: Final = {Slot.ID: r"[^\s\[\]<>{}]{0,100}?", Slot.INDEX: r"\d{1,6}", Slot.TYPE: r"[^\s<>]{0,40}?"}
SPACE: Final = r"\s*+"
"""No literal text and no slot begins with white space, so giving some back would only take time."""
MAX_MATCHED: Final = 500
"""Characters in which a pattern must match: all marks, names and white space before a value."""


def lenient(text: str) -> str:
    """The pattern of a literal text."""
    return SPACE.join(regex.escape(unit) for unit in _UNITS.split(text))


def marks_in(text: str) -> list[str]:
    """The marks that a text consists of, without the white space between them."""
    return _MARKS.findall(text)


def is_plain_key(key: str) -> bool:
    """Whether KEY matches this text even if it is not known."""
    return regex.fullmatch(_KEY, key) is not None


def slot_pattern(slot: Slot, group: str = "", known: Iterable[str] = (), *, only_known: bool = False) -> str:
    """`known`: the texts that NAME must be one of, or that KEY is most likely, or must be with `only_known`."""
    names = "|".join(regex.escape(name) for name in sorted(known, key=len, reverse=True))
    if slot is Slot.NAME:
        pattern = rf"(?:{names})(?=[^\w-])" if names else r"(?!)"  # a longer name may have another one as its beginning
    elif slot is Slot.KEY:
        ways = [way for way in (names, "" if only_known else _KEY) if way]
        pattern = rf"(?:{'|'.join(ways)}){_KEY_END}"
    else:
        pattern = _ANY[slot]
    return f"(?P<{group}>{pattern})" if group else f"(?:{pattern})"


def form_pattern(parts: Form, known: Iterable[str] = (), *, only_known: bool = False) -> str:
    """The pattern of a part of a form. Its NAME and KEY become groups of these names, and must repeat the same text."""
    patterns: list[str] = []
    seen: set[Slot] = set()
    for part in parts:
        if isinstance(part, str):
            patterns.append(lenient(part))
        elif part in seen and part.value not in ("id", "index"):
            patterns.append(f"(?P={part.value})")
        else:
            group = part.value if part not in seen else ""
            names = known if part in (Slot.NAME, Slot.KEY) else ()
            patterns.append(slot_pattern(part, group, names, only_known=only_known))
            seen.add(part)
    return "".join(patterns)


def split_at(parts: Form, slot: Slot) -> tuple[Form, Form]:
    """The parts before and after the first such slot, which must exist."""
    at = parts.index(slot)
    return parts[:at], parts[at + 1 :]


def first_marks(*forms: Form) -> frozenset[str]:
    """The characters that the forms begin with, without those that numbers and words consist of."""
    firsts = [next((part for part in form if isinstance(part, Slot) or part.strip()), Slot.VALUE) for form in forms]
    marks = {first.strip()[0] for first in firsts if not isinstance(first, Slot)}
    return frozenset(mark for mark in marks if not mark.isalnum() and mark not in "_+-.")


def trailing_space(parts: Form) -> str:
    last = parts[-1] if parts else ""
    return last[len(last.rstrip()) :] if isinstance(last, str) else ""


def without_trailing_space(parts: Form) -> Form:
    if parts and isinstance(parts[-1], str):
        return (*parts[:-1], parts[-1].rstrip())
    return parts


def with_name(parts: Form, name: str) -> Form:
    """The parts with the function's name in its place, and with texts next to each other as one."""
    merged: list[str | Slot] = []
    for part in (name if part is Slot.NAME else part for part in parts):
        if isinstance(part, str) and merged and isinstance(before := merged[-1], str):
            merged[-1] = before + part
        else:
            merged.append(part)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class JsonCall:
    """A call that is one JSON object. Models differ in the order of its members."""

    before: Form
    after: Form
    arguments_path: tuple[str, ...]
    """Keys from the object to the arguments. NAME_KEY stands for the function's name."""
    name_path: tuple[str, ...] | None
    """Keys to the function's name; None if it is a key on the other path."""


NAME_KEY: Final = "\ue001"
_HOLDER: Final = {slot: chr(0xE001 + i) for i, slot in enumerate((Slot.NAME, Slot.ARGUMENTS, Slot.ID, Slot.INDEX))}


def json_call(parts: Form) -> JsonCall | None:
    """How a form is one JSON object; None if it is not."""
    text = "".join(part if isinstance(part, str) else _HOLDER.get(part, "") for part in parts)
    for begin in (match.start() for match in re.finditer(r"\{", text)):
        for end in sorted((match.end() for match in re.finditer(r"\}", text)), reverse=True):
            try:
                value = json.loads(re.sub(r'(?<!")([\ue001-\ue004])(?!")', r'"\1"', text[begin:end]))
            except ValueError:
                continue
            arguments, name = _path(value, _HOLDER[Slot.ARGUMENTS]), _path(value, NAME_KEY)
            if arguments is not None and (name is not None or NAME_KEY in arguments):
                return JsonCall(_parts(text[:begin]), _parts(text[end:]), arguments, name)
    return None


def _path(value: Any, wanted: str) -> tuple[str, ...] | None:
    if value == wanted:
        return ()
    for key, inner in value.items() if isinstance(value, dict) else ():
        if (path := _path(inner, wanted)) is not None:
            return key, *path
    return None


def _parts(text: str) -> Form:
    slots: dict[str, str | Slot] = {char: slot for slot, char in _HOLDER.items()}
    return tuple(slots.get(piece, piece) for piece in re.split(r"([\ue001-\ue004])", text) if piece)


class Matcher:
    """Matches the beginning of a held text against several patterns."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [regex.compile(pattern) for pattern in patterns]

    def match(self, text: str) -> "tuple[int, regex.Match[str]] | bool":
        """The first pattern that matches, with its match; else whether more text may match one.

        More text is awaited as long as an earlier pattern may match and the text is short.
        """
        for i, pattern in enumerate(self._patterns):
            found = pattern.match(text, partial=True)
            if found is not None and not found.partial:
                return i, found
            if found is not None and len(text) < MAX_MATCHED:
                return True
        return False


class Marks:
    """Finds literal marks at the beginning of a held text."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = sorted({mark for mark in marks if mark}, key=len, reverse=True)
        self._firsts = frozenset(mark[0] for mark in self._marks)
        self._beginnings = frozenset(mark[:i] for mark in self._marks for i in range(1, len(mark)))

    def may_grow(self, text: str) -> bool:
        """Whether the whole text is the beginning of a longer mark."""
        return text in self._beginnings

    def at(self, text: str) -> str:
        """The longest mark that the text begins with; empty if it begins with none."""
        if text[0] not in self._firsts:
            return ""
        return next((mark for mark in self._marks if text.startswith(mark)), "")
