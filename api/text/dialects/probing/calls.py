"""Learns how calls are written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from api.text.dialects.probing.arguments import (
    ARGUMENTS,
    KEY,
    VALUE,
    json_layout,
    learn_tagged,
    with_json_slots,
    with_slots,
)
from api.text.dialects.probing.marks import (
    SLOTS,
    as_form,
    behind,
    digits,
    first_mark,
    is_bare,
    num_marks,
    repeated,
    shared_words,
    slot_positions,
    squeezed,
    units,
)
from api.text.dialects.probing.renders import (
    CONTENT,
    NAMES,
    PROBE,
    RESULT,
    TWO_ARGUMENTS,
    Call,
    Renders,
    assistant,
    results,
    with_calls,
)
from api.text.dialects.probing.thoughts import Plain
from api.text.dialects.probing.vouch import is_vouched
from api.text.dialects.syntax import Calls, JsonArguments, Slot, TaggedArguments

NAME, INDEX = SLOTS[Slot.NAME], SLOTS[Slot.INDEX]
SHORT_ID: Final = "[a-zA-Z0-9]{9}"
LONG_ID: Final = "call_zqidlonger"
_CONTENTS: Final = (CONTENT, "", None)
_PYTHON_VALUES: Final = ((("=",), ()), (('="',), ('"',)), (("='",), ("'",)))
"""What is before and behind a value."""
_INDENT: Final = re.compile(r"(?<![\n ]) {2,}")
"""White space of the template's source. Models do not write it."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to give calls to a template."""

    as_text: bool
    """Whether the arguments are JSON text."""
    content: str | None
    is_followed: bool
    """Whether the results follow."""


@dataclass(frozen=True, slots=True)
class Found:
    """Calls for which the template vouches."""

    calls: Calls
    way: Way
    ends: tuple[str, ...]
    """Marks that end a turn with calls."""
    is_miswritten: bool = False
    """Whether the template writes values or commas otherwise than the language of the calls asks for."""


def learn_calls(renders: Renders, plain: Plain) -> Found | None:
    """Learn from the first way in which the template writes calls that can be written back.

    Text in front of the calls may have marks of its own, such as the end of its turn. So ways without text are
    preferred if they give less.
    """
    other = None
    for way in _ways():
        if found := _learn(Sections(renders, plain, way)):
            if not way.content or not _adds_marks(renders, plain, way):
                return found
            other = other or found
    return other


def _adds_marks(renders: Renders, plain: Plain, way: Way) -> bool:
    """Whether the calls have more in front of them than if there is no text."""
    ours = squeezed(Sections(renders, plain, way)(TWO_ARGUMENTS[:1]) or "")
    for content in _CONTENTS[1:]:
        theirs = squeezed(Sections(renders, plain, replace(way, content=content))(TWO_ARGUMENTS[:1]) or "")
        if theirs and theirs != ours and ours.endswith(theirs):
            return True
    return False


def _ways() -> Iterator[Way]:
    for as_text in (False, True):
        for content in _CONTENTS:
            for is_followed in (False, True):
                yield Way(as_text, content, is_followed)


class Sections:
    """The texts that call tools, as the template writes them in one way."""

    def __init__(self, renders: Renders, plain: Plain, way: Way) -> None:
        self._renders = renders
        self._ends = plain.ends
        self._marks = [
            mark for marks in (plain.thoughts, plain.content) if marks for mark in (*marks.begins, *marks.ends)
        ]
        self.way = way

    def __call__(self, calls: Sequence[Call]) -> str | None:
        """The text between the text of an answer and the end of its turn, without white space around it."""
        way = self.way
        following = results(calls) if way.is_followed else []
        turn = self._renders.turn(with_calls(calls, way.content, as_text=way.as_text), following, tools=True)
        if turn is None or NAMES[0] not in turn:
            return None
        if following:
            turn = turn.partition(RESULT)[0]
        plain = (self._renders.turn(assistant(CONTENT), tools=True) or "").partition(CONTENT)[0]
        if way.content and way.content in turn.partition(NAMES[0])[0]:
            before, _, text = turn.partition(way.content)
            text = self._without_marks(text)
            for _ in range(num_marks(self._without_marks(behind(before, shared_words(plain, before))))):
                text = text.removeprefix(first_mark(text)).lstrip()  # the text has marks only in turns with calls
        else:
            text = self._without_marks(behind(turn, shared_words(plain, turn)))
        if text.startswith(str(None)):
            return None  # a template that writes a content of null
        return self._to_end(text, calls)

    def _without_marks(self, text: str) -> str:
        """The text behind an empty thought and the marks of an empty text."""
        text = text.lstrip()
        for mark in self._marks:
            text = text.removeprefix(mark).lstrip()
        return text

    def takes_only_short_ids(self) -> bool:
        """Whether the template refuses other ids than those of nine letters and digits."""
        message = with_calls(TWO_ARGUMENTS[:1], self.way.content, as_text=self.way.as_text)
        message["tool_calls"][0]["id"] = LONG_ID
        following = [result | {"tool_call_id": LONG_ID} for result in results(TWO_ARGUMENTS[:1])]
        return self._renders.turn(message, following if self.way.is_followed else (), tools=True) is None

    def _to_end(self, text: str, calls: Sequence[Call]) -> str | None:
        name, arguments = calls[-1]
        last = max([text.find(name), *(text.rfind(str(value)) for value in arguments.values() if value != {})])
        ends = [at for end in self._ends if (at := text.find(end, max(last, 0))) >= 0]
        if not ends and self.way.is_followed:
            return None
        return text[: min(ends, default=len(text))].strip()


def _learn(section: Sections) -> Found | None:
    text = section(TWO_ARGUMENTS[:1])
    if text is None:
        return None
    quoted = ARGUMENTS in with_json_slots(text, TWO_ARGUMENTS[:1], quoted=True)
    one = with_slots(with_json_slots(text, TWO_ARGUMENTS[:1], quoted=quoted))
    two = section(TWO_ARGUMENTS)
    two = with_slots(with_json_slots(two, TWO_ARGUMENTS, quoted=quoted)) if two and NAMES[1] in two else None
    arguments: JsonArguments | TaggedArguments = JsonArguments(quoted, json_layout(text, TWO_ARGUMENTS[0][1]))
    if ARGUMENTS not in one:
        tagged = learn_tagged(one, section)
        if tagged is None:
            return None
        arguments = tagged.arguments
        one = one.replace(tagged.region, ARGUMENTS)
        two = two and two.replace(tagged.region, ARGUMENTS)
    if KEY in one or VALUE in one or one.count(ARGUMENTS) != 1 or NAME not in one:
        return None
    if two:
        one, two = _with_indexes(one, two)
    found = _calls(one, two, arguments)
    if found is None or PROBE in found[0].begin + found[0].end + str(found[0].forms) or _is_broken(found[0]):
        return None
    calls, ends = found
    if not is_vouched(calls, section, ends, has_two=two is not None):
        return None
    if section.takes_only_short_ids():
        calls = replace(calls, id_pattern=SHORT_ID)
    corrected = as_python(calls)
    return Found(corrected or calls, section.way, ends, is_miswritten=bool(corrected) and _lacks_quotes(calls))


def _is_broken(calls: Calls) -> bool:
    """Whether a name has a quote before it and none behind it: the template has an error that its model has not."""
    return any(
        part is Slot.NAME and str(form[i - 1]).endswith('"') and not str(form[i + 1]).startswith('"')
        for form in calls.forms
        for i, part in enumerate(form[:-1])
        if i
    )


def as_python(calls: Calls) -> Calls | None:
    """Calls that look like Python's, with Python's values and commas; None if they do not look like them.

    Some templates write strings without quotes, numbers with quotes, or no commas. Their models write Python.
    """
    form, style = calls.forms[0], calls.arguments
    at = form.index(Slot.ARGUMENTS)
    if not isinstance(style, TaggedArguments) or form[at - 2 : at] != (Slot.NAME, "("):
        return None
    head, tail = style.argument[1:2], style.argument[3:]
    if style.argument[:3:2] != (Slot.KEY, Slot.VALUE) or (head, tail) not in _PYTHON_VALUES:
        return None
    separator = style.separator if "," in style.separator else ", "
    argument = (Slot.KEY, "=", Slot.VALUE)
    return replace(calls, arguments=TaggedArguments(argument, separator, encoding="python"))


def _lacks_quotes(calls: Calls) -> bool:
    """Whether the values of calls that look like Python's are not Python, or have no commas between them."""
    style = calls.arguments
    return isinstance(style, TaggedArguments) and (style.encoding == "raw" or "," not in style.separator)


def _with_indexes(one: str, two: str) -> tuple[str, str]:
    """The texts with INDEX where a number counts up from call to call."""
    single, double = list(digits(one)), list(digits(two))
    size = len(single)
    if len(double) != 2 * size:
        return one, two
    counted = [i for i in range(size) if int(double[i + size].group()) == int(double[i].group()) + 1]
    return (
        _replaced(one, [single[i].span() for i in counted]),
        _replaced(two, [double[i].span() for i in (*counted, *(i + size for i in counted))]),
    )


def _replaced(text: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in reversed(spans):
        text = text[:start] + INDEX + text[end:]
    return text


def _calls(
    one: str, two: str | None, arguments: JsonArguments | TaggedArguments
) -> tuple[Calls, tuple[str, ...]] | None:
    """The syntax of calls and marks that end the turn, from the slotted sections of one call and of two."""
    if two is None:
        one = _INDENT.sub("", one)
        return Calls((as_form(one),), arguments, bare=is_bare(one[: slot_positions(one)[0]])), ()
    one, two = _INDENT.sub("", one), _INDENT.sub("", two)
    places, both = slot_positions(one), slot_positions(two)
    size = len(places)
    if [one[i] for i in places] * 2 != [two[i] for i in both]:
        return None
    core = one[places[0] : places[-1] + 1]
    split = repeated(two[: both[0]], two[both[size - 1] + 1 : both[size]], two[both[-1] + 1 :])
    if squeezed(core) != squeezed(two[both[0] : both[size - 1] + 1]):
        return None
    form = split.item_begin + core + split.item_end
    end, turn_end = _balanced(split.begin, split.end.rstrip())
    head = split.begin + form[: slot_positions(form)[0]]
    calls = Calls((as_form(form),), arguments, split.begin.lstrip(), split.separator, end, bare=is_bare(head))
    return calls, (turn_end,) if turn_end else ()


def _balanced(begin: str, end: str) -> tuple[str, str]:
    """The end of a section, which has as many marks as its begin, and the mark behind it, which ends the turn."""
    parts, size = units(end), 0
    while num_marks(end) > num_marks(begin) and size < len(parts):
        size += 1
        end = "".join(parts[: len(parts) - size])
    return end.rstrip(), first_mark("".join(parts[len(parts) - size :])) if size else ""
