"""Learns how the arguments of a call are written."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from api.text.dialects.probing.marks import SLOTS, Repeated, as_form, repeated, slot_positions, squeezed
from api.text.dialects.probing.renders import IDS, KEYS, NAMES, VALUES, Call
from api.text.dialects.syntax import Encoding, Slot, TaggedArguments

_DECODER: Final = json.JSONDecoder()
KEY, VALUE, TYPE, ARGUMENTS = (SLOTS[slot] for slot in (Slot.KEY, Slot.VALUE, Slot.TYPE, Slot.ARGUMENTS))
NUMBER: Final = 4711
INNER: Final = ("zqinner", "zqdeep")
_SAMPLES: Final[Mapping[str, Any]] = {
    "integer": NUMBER,
    "number": NUMBER + 0.5,
    "boolean": True,
    "object": {INNER[0]: INNER[1]},
    "array": [NUMBER, NUMBER + 1],
    "null": None,
}
_QUOTES: Final[Mapping[str, Encoding]] = {'"': "json", "'": "python", '<|"|>': "gemma"}
_REPR: Final = re.compile(rf"'{KEY}': ")
"""Part of Python's text of a dictionary, which a template writes that expects JSON text."""
MARKUP: Final = "zqa<zqb>&zqc"

Section = Callable[[Sequence[Call]], str | None]
"""Renders calls and cuts the result to what the model writes to call them."""


def with_json_slots(text: str, calls: Sequence[Call], *, quoted: bool = False) -> str:
    """The text with ARGUMENTS in place of each call's arguments as a JSON object, or as JSON in a JSON string."""
    for _, arguments in calls:
        for match in re.finditer('"' if quoted else r"\{", text):
            try:
                value, end = _DECODER.raw_decode(text, match.start())
                if quoted:
                    value = json.loads(value)
            except ValueError:
                continue
            if value == arguments:
                text = text[: match.start()] + ARGUMENTS + text[end:]
                break
    return text


def json_layout(text: str, arguments: Mapping[str, Any]) -> Literal["spaced", "compact", "indented"]:
    """The white space of the arguments in a text that has them as a JSON object."""
    for match in re.finditer(r"\{", text):
        try:
            value, end = _DECODER.raw_decode(text, match.start())
        except ValueError:
            continue
        if value == arguments:
            written = text[match.start() : end]
            return "indented" if "\n" in written else "spaced" if '": ' in written else "compact"
    return "spaced"


def with_slots(text: str) -> str:
    """The text with slots in place of names, ids, keys and values."""
    for words, slot in ((NAMES, Slot.NAME), (IDS, Slot.ID), (KEYS, Slot.KEY), (VALUES, Slot.VALUE)):
        for word in words:
            text = text.replace(word, SLOTS[slot])
    return text


@dataclass(frozen=True, slots=True)
class Tagged:
    """Arguments that are written one by one."""

    region: str
    """The slotted text of two arguments."""
    arguments: TaggedArguments


def learn_tagged(text: str, section: Section) -> Tagged | None:
    """Learn from the slotted section of a call with two arguments; None if these are not written one by one."""
    parts = _split(text)
    if parts is None:
        return None
    core, split = parts
    one = split.item_begin + core + split.item_end
    region = one + split.separator + one
    if region not in text:
        return None
    single = section([(NAMES[0], {KEYS[0]: VALUES[0]})])
    if single is None:
        return None
    simple = with_slots(single)
    at = simple.find(one)
    if at < 0:
        return None
    types = _Types(section, simple)
    encoding = types.encoding()
    is_python = text[: text.index(region)].endswith(SLOTS[Slot.NAME] + "(") and core.startswith(KEY + "=")
    if encoding is None or not (is_python or _is_ended(encoding, core, split.item_end)):
        return None
    marked, words = types.words()
    argument = marked[at : len(marked) - (len(types.reference) - at - len(types.unquoted(one)))]
    tagged = TaggedArguments(as_form(argument), split.separator, encoding, words)
    if encoding == "raw" and types.is_nested(argument, words):
        tagged = replace(tagged, encoding="nested")
    return Tagged(region, replace(tagged, cdata=types.has_cdata()))


def _split(text: str) -> tuple[str, Repeated] | None:
    """The text of an argument between its first and last slot, and what surrounds two of them."""
    positions = slot_positions(text)
    mine = [i for i in positions if text[i] in (KEY, VALUE)]
    half = len(mine) // 2
    if half < 2 or len(mine) % 2:
        return None
    first, last, again, end = mine[0], mine[half - 1], mine[half], mine[-1]
    core = text[first : last + 1]
    if core != text[again : end + 1] or VALUE not in core or KEY not in core or _REPR.search(text):
        return None
    start = max((i + 1 for i in positions if i < first), default=0)
    stop = min((i for i in positions if i > end), default=len(text))
    split = repeated(text[start:first], text[last + 1 : again], text[end + 1 : stop])
    gap = split.separator
    if not split.item_end and not gap.strip() and gap.startswith("\n") and split.end.startswith("\n"):
        split = split._replace(item_end="\n", separator=gap[1:], end=split.end[1:])  # lines
    return core, split


def _is_ended(encoding: Encoding, core: str, item_end: str) -> bool:
    """Whether the end of a value can be seen."""
    return encoding != "raw" or not core.endswith(VALUE) or bool(item_end)


class _Types:
    """How the values of one argument are written, type by type."""

    def __init__(self, section: Section, simple: str) -> None:
        self._section = section
        self._simple = simple
        self._quote = ""
        """What strings have on both sides and numbers do not."""
        self.reference = simple
        """The slotted section with one argument, without the quotes of a string."""

    def unquoted(self, text: str) -> str:
        return text.replace(self._quote + VALUE + self._quote, VALUE)

    def encoding(self) -> Encoding | None:
        """None if strings and numbers are not written in one of the known ways."""
        if self._word("integer") is not None:
            return "raw"
        for quote, encoding in _QUOTES.items():
            if quote + VALUE + quote in self._simple:
                self._quote = quote
                self.reference = self.unquoted(self._simple)
                if self._word("integer") is not None:
                    return "python" if encoding == "json" and "True" in self._text(True) else encoding
        return None

    def words(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The reference with TYPE if the type of a value is written, and the words for types."""
        found = {kind: word for kind in _SAMPLES if (word := self._word(kind))}
        if "integer" not in found:
            return self.reference, ()
        at, string = next((at, string) for at, string, _ in found.values())
        words = {"string": string} | {kind: word for kind, (_, _, word) in found.items()}
        words |= {kind: string for kind in _SAMPLES if kind not in words and self._word(kind) == ()}
        if words.get("integer") == words.get("number"):
            del words["integer"]
        return self.reference[:at] + TYPE + self.reference[at + len(string) :], tuple(words.items())

    def is_nested(self, argument: str, words: Sequence[tuple[str, str]]) -> bool:
        """Whether an object value repeats the form of an argument."""
        inner = argument.replace(KEY, INNER[0]).replace(VALUE, INNER[1]).replace(TYPE, dict(words).get("string", ""))
        return squeezed(inner) in squeezed(self._text(_SAMPLES["object"]))

    def has_cdata(self) -> bool:
        return f"<![CDATA[{MARKUP}]]>" in self._text(MARKUP)

    def _text(self, value: Any) -> str:
        section = self._section([(NAMES[0], {KEYS[0]: value})])
        return with_slots(section) if section else ""

    def _word(self, kind: str) -> tuple[int, str, str] | tuple[()] | None:
        """The word for this type, with the place and the word for strings. () if none differs, None if unreadable."""
        value = _SAMPLES[kind]
        text = self._text(value)
        best: tuple[int, str, str] | tuple[()] | None = None
        for written in dict.fromkeys((json.dumps(value), json.dumps(value, separators=(",", ":")), repr(value))):
            for form in _with_value(text, written):
                if form == self.reference:
                    return ()
                best = best or _difference(self.reference, form)
        return best


def _with_value(text: str, written: str) -> Iterator[str]:
    for match in re.finditer(re.escape(written), text):
        yield text[: match.start()] + VALUE + text[match.end() :]


def _difference(one: str, other: str) -> tuple[int, str, str] | None:
    """Where two texts differ in one word, and the words."""
    pattern = re.compile(r"(\w+)")
    ours, theirs = pattern.split(one), pattern.split(other)
    if len(ours) != len(theirs):
        return None
    places = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if len(places) != 1 or places[0] % 2 == 0:
        return None
    return sum(map(len, ours[: places[0]])), ours[places[0]], theirs[places[0]]
