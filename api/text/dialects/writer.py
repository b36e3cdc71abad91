"""Writes calls as a model would, for templates that do not write them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from api.text.dialects.kinds import kind_of
from api.text.dialects.syntax import Calls, Form, JsonArguments, Slot, TaggedArguments

_GEMMA_QUOTE: Final = '<|"|>'


def written(calls: Calls, made: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of an answer's calls, given by name and arguments."""
    texts = [_call(calls, name, arguments, number) for number, (name, arguments) in enumerate(made)]
    return ("" if calls.bare else calls.begin) + calls.separator.join(texts) + calls.end


def _call(calls: Calls, name: str, arguments: Mapping[str, Any], number: int) -> str:
    parts = calls.forms[0]
    before, after = _around_arguments(parts)
    text = arguments_text(calls.arguments, arguments)
    if not text and before[-1:] and isinstance(before[-1], str) and before[-1][-1:].isspace():
        after = _without_leading_space(after)
    filled = [*before, text, *after]
    values = {Slot.NAME: name, Slot.ID: f"call{number:05}", Slot.INDEX: str(number)}
    return "".join(part if isinstance(part, str) else values[part] for part in filled)


def arguments_text(syntax: JsonArguments | TaggedArguments, arguments: Mapping[str, Any]) -> str:
    if isinstance(syntax, JsonArguments):
        text = json.dumps(arguments, ensure_ascii=False)
        return json.dumps(text, ensure_ascii=False) if syntax.quoted else text
    return syntax.separator.join(_argument(syntax, key, value) for key, value in arguments.items())


def _argument(syntax: TaggedArguments, key: str, value: Any) -> str:
    texts = {Slot.KEY: key, Slot.VALUE: _value(syntax, value), Slot.TYPE: _type(dict(syntax.types), value)}
    return "".join(part if isinstance(part, str) else texts[part] for part in syntax.argument)


def _type(words: Mapping[str, str], value: Any) -> str:
    kind = kind_of(value)
    if kind == "number" and isinstance(value, int):
        return words.get("integer", words.get(kind, ""))
    return words.get(kind, "")


def _value(syntax: TaggedArguments, value: Any) -> str:
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
                return "".join(_argument(syntax, key, inner) for key, inner in value.items())
            if isinstance(value, list):
                return "".join(_argument(syntax, "item", inner) for inner in value)
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


def _around_arguments(parts: Form) -> tuple[Form, Form]:
    at = parts.index(Slot.ARGUMENTS)
    return parts[:at], parts[at + 1 :]


def _without_leading_space(parts: Form) -> Form:
    if parts and isinstance(parts[0], str):
        return (parts[0].lstrip(), *parts[1:])
    return parts
