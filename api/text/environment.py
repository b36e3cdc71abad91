"""The Jinja environment of chat templates: that of Hugging Face's transformers, and what real templates also need."""

import json
from collections.abc import Iterator
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

MAX_GROWN: Final = 10_000
"""The most items that a list may have after a template has added some. No real template comes near it."""
_CHANGEABLE: Final = (list, dict)
_GROWING: Final = frozenset({"append", "extend", "insert"})


class RaisedError(TemplateError):
    """The error of a template's raise_exception."""


class Unchangeable(list[Any]):
    """A list that a template cannot change. A loop over the conversation would not end if its body made it longer."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates may change lists and objects with their methods, such as `append` and `update`.

    Each rendering must get copies of all lists and objects, so that no change reaches another one. A template cannot
    make a list longer than MAX_GROWN, because a loop over a list whose body makes it longer would not end.
    """

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag])
        self.filters["tojson"] = _to_json
        self.filters["from_json"] = json.loads
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if type(obj) in _CHANGEABLE:
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if type(obj) is BuiltinMethodType and type(obj.__self__) is list:
            return _call_of_list(context, obj, args, kwargs)
        if not self.is_safe_callable(obj):  # the rest is Jinja's own method; to call it would slow down each call
            raise SecurityError(f"{obj!r} is not safely callable")
        return context.call(obj, *args, **kwargs)


class _GenerationTag(Extension):
    """Hugging Face's `{% generation %}`, which marks text to train on. Only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _call_of_list(context: Context, method: BuiltinMethodType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a method of a list returns. Raises TemplateError if it makes the list too long."""
    if "key" in kwargs:  # `sort` would call it without a check: it may be another list's `append`
        raise SecurityError("the argument 'key' of sort is unsafe; use the filter 'sort'")
    if method.__name__ not in _GROWING:
        return context.call(method, *args, **kwargs)
    # an iterator may read from the list itself, and `extend` would then not end
    args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
    returned = context.call(method, *args, **kwargs)
    if len(method.__self__) > MAX_GROWN:  # type: ignore[arg-type]
        raise TemplateError(f"it makes a list longer than {MAX_GROWN} items")
    return returned


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: object) -> list[Any]:
    """The items that a filter such as `map` returns."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _raise_exception(message: object) -> None:
    raise RaisedError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may use
    return datetime.now().astimezone().strftime(format)
