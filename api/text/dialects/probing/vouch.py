"""Checks a learned syntax: calls are written by it and compared with what the template writes."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, Final

from api.text.dialects.probing.marks import squeezed
from api.text.dialects.probing.renders import IDS, KEYS, NAMES, Call
from api.text.dialects.syntax import Calls, Form, Slot, TaggedArguments

SPECIAL: Final = 'zq "it\'s" a\\b\nc'
"""A string that must be escaped wherever strings are."""
PLAIN: Final = "zq it is"
_FIRST_INDEXES: Final = (0, 1)


def is_vouched(
    calls: Calls, section: Callable[[Sequence[Call]], str | None], ends: Sequence[str], *, has_two: bool
) -> bool:
    """Whether the template writes what the syntax says, white space apart, for one call and for two."""
    return any(_is_vouched(calls, section, "".join(ends), text, has_two) for text in _strings(calls, section))


def _strings(calls: Calls, section: Callable[[Sequence[Call]], str | None]) -> list[str]:
    """The strings to try. Some templates do not escape strings where their models do."""
    style = calls.arguments
    if isinstance(style, TaggedArguments):
        return [SPECIAL, PLAIN] if style.encoding != "raw" or style.cdata else [SPECIAL]
    is_raw = SPECIAL in (section([(NAMES[0], {KEYS[0]: SPECIAL})]) or "")
    return [PLAIN] if is_raw else [SPECIAL]


def _is_vouched(
    calls: Calls, section: Callable[[Sequence[Call]], str | None], end: str, text: str, has_two: bool
) -> bool:
    given: list[Call] = [(NAMES[0], {KEYS[0]: 815, KEYS[1]: text}), (NAMES[1], {KEYS[0]: "zqother"})]
    samples = [given[:1], given] if has_two else [given[:1]]
    if has_two and any(char.isdigit() for char in calls.begin + calls.separator + calls.end):
        samples.append([*given, (NAMES[1], {KEYS[0]: "zqthird"})])  # it may be a number that counts calls
    for sample in samples:
        written = section(sample)
        if written is None:
            return False
        theirs = {squeezed(written)}
        if len(sample) == 1 < len(samples):
            theirs.add(squeezed(written + calls.end))  # a template that ends a section only behind several calls
        ways = product(_FIRST_INDEXES, (repr, json.dumps))
        ours = {squeezed(write(calls, sample, *way)) for way in ways}
        if not ours & theirs and not (
            end and squeezed(written).startswith(tuple(text + squeezed(end) for text in ours))
        ):
            return False
    return True


def write(calls: Calls, given: Sequence[Call], first_index: int, quote: Callable[[str], str]) -> str:
    """The text of these calls. Strings of Python are written by `quote`."""
    texts = []
    for i, (name, arguments) in enumerate(given):
        texts.append(
            _filled(
                calls.forms[0],
                {
                    Slot.NAME: name,
                    Slot.ID: IDS[i],
                    Slot.INDEX: str(first_index + i),
                    Slot.ARGUMENTS: _arguments(calls, arguments, quote),
                },
            )
        )
    return calls.begin + calls.separator.join(texts) + calls.end


def _filled(form: Form, texts: Mapping[Slot, str]) -> str:
    return "".join(part if isinstance(part, str) else texts[part] for part in form)


def _arguments(calls: Calls, arguments: Mapping[str, Any], quote: Callable[[str], str]) -> str:
    style = calls.arguments
    if not isinstance(style, TaggedArguments):
        text = json.dumps(arguments)
        return json.dumps(text) if style.quoted else text
    words = dict(style.types)
    number = words.get("integer", words.get("number", ""))
    return style.separator.join(
        _filled(
            style.argument,
            {
                Slot.KEY: key,
                Slot.VALUE: _value(value, style, quote),
                Slot.TYPE: words.get("string", "") if isinstance(value, str) else number,
            },
        )
        for key, value in arguments.items()
    )


def _value(value: Any, style: TaggedArguments, quote: Callable[[str], str]) -> str:
    if style.encoding == "python":
        return quote(value) if isinstance(value, str) else repr(value)
    if not isinstance(value, str) or style.encoding == "json":
        return json.dumps(value)
    if style.encoding == "gemma":
        return f'<|"|>{value}<|"|>'
    return f"<![CDATA[{value}]]>" if style.cdata and "\n" in value else value
