"""Writes calls as a model would, for templates that do not write them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from api.text.dialects.kinds import kind_of
from api.text.dialects.syntax import Calls, Form, JsonArguments, Slot, TaggedArguments
from api.text.guard import Mark, Pieces

_GEMMA_QUOTE: Final = '<|"|>'


def written(calls: Calls, made: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of an answer's calls, given by name and arguments."""
    return "".join(pieces(calls, made))


def pieces(calls: Calls, made: Sequence[tuple[str, Mapping[str, Any]]]) -> Pieces:
    """The text of an answer's calls: the syntax's marks, and the texts of the model between them."""
    parts: list[str] = [] if calls.bare and not calls.end else [Mark(calls.begin)]
    for number, (name, arguments) in enumerate(made):
        parts += [Mark(calls.separator)] if number else []
        parts += _call(calls, name, arguments, number)
    return Pieces([*parts, Mark(calls.end)])


def _call(calls: Calls, name: str, arguments: Mapping[str, Any], number: int) -> Iterator[str]:
    form = calls.forms[0]
    at = form.index(Slot.ARGUMENTS)
    before, after = form[:at], form[at + 1 :]
    given = list(_arguments(calls.arguments, arguments))
    if not given and before[-1:] and isinstance(before[-1], str) and before[-1][-1:].isspace():
        after = _without_leading_space(after)
    texts = {Slot.NAME: name, Slot.ID: f"call{number:05}", Slot.INDEX: str(number)}
    yield from _filled(before, texts)
    yield from given
    yield from _filled(after, texts)


def _filled(form: Form, texts: Mapping[Slot, str]) -> Iterator[str]:
    return (Mark(part) if isinstance(part, str) else texts[part] for part in form)


def _arguments(syntax: JsonArguments | TaggedArguments, arguments: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(syntax, JsonArguments):
        text = json.dumps(arguments, ensure_ascii=False)
        yield json.dumps(text, ensure_ascii=False) if syntax.quoted else text
        return
    for number, (key, value) in enumerate(arguments.items()):
        if number:
            yield Mark(syntax.separator)
        yield from _argument(syntax, key, value)


def _argument(syntax: TaggedArguments, key: str, value: Any) -> Iterator[str]:
    texts = {Slot.KEY: key, Slot.VALUE: value_text(syntax, value), Slot.TYPE: _type(dict(syntax.types), value)}
    return _filled(syntax.argument, texts)


def _type(words: Mapping[str, str], value: Any) -> str:
    kind = kind_of(value)
    if kind == "number" and isinstance(value, int):
        return words.get("integer", words.get(kind, ""))
    return words.get(kind, "")


def value_text(syntax: TaggedArguments, value: Any) -> str:
    match syntax.encoding:
        case "raw":
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return f"<![CDATA[{text}]]>" if syntax.cdata and isinstance(value, str) and "<" in value else text
        case "python":
            return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else repr(value)
        case "gemma":
            return _gemma(value)
        case "nested":
            if isinstance(value, Mapping):
                return "".join(part for key, inner in value.items() for part in _argument(syntax, key, inner))
            if isinstance(value, list):
                return "".join(part for inner in value for part in _argument(syntax, "item", inner))
            return value if isinstance(value, str) else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return _GEMMA_QUOTE + value + _GEMMA_QUOTE
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_gemma(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_gemma, value)) + "]"
    return json.dumps(value)


def _without_leading_space(parts: Form) -> Form:
    if parts and isinstance(parts[0], str):
        return (parts[0].lstrip(), *parts[1:])
    return parts
