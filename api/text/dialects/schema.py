"""The well-typed part of a tool's schema. Without `strict` a schema is a hint, which may be wrong in parts."""

from collections.abc import Callable, Mapping
from typing import Any, Final

_MAX_DEPTH: Final = 110
"""Schemas inside of schemas. Rules for JSON also leave out what is deeper."""


def well_typed(schema: Any, depth: int = 0) -> Any:
    """A copy of a schema without the keywords whose values have a wrong type, in its inner schemas too.

    What is no schema at all becomes the schema that allows everything. Keywords that no rule for calls reads stay as
    they are.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return {}
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        right = _READERS[keyword](value, depth + 1) if keyword in _READERS else value
        if right is not None:
            kept[keyword] = right
    return kept


def _schema(value: Any, depth: int) -> Any:
    return well_typed(value, depth) if isinstance(value, Mapping | bool) else None


def _items(value: Any, depth: int) -> Any:
    """Older drafts list the schemas of the first items."""
    return _options(value, depth) if isinstance(value, list) else _schema(value, depth)


def _options(value: Any, depth: int) -> list[Any] | None:
    return [well_typed(each, depth) for each in value] if isinstance(value, list) and value else None


def _named(value: Any, depth: int) -> dict[str, Any] | None:
    return {key: well_typed(each, depth) for key, each in value.items()} if isinstance(value, Mapping) else None


def _types(value: Any, _depth: int) -> str | list[str] | None:
    is_right = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    return value if is_right and value else None


def _texts(value: Any, _depth: int) -> list[str] | None:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else None


def _values(value: Any, _depth: int) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _text(value: Any, _depth: int) -> str | None:
    return value if isinstance(value, str) else None


_READERS: Final[Mapping[str, Callable[[Any, int], Any]]] = {
    "type": _types,
    "properties": _named,
    "$defs": _named,
    "definitions": _named,
    "required": _texts,
    "enum": _values,
    "anyOf": _options,
    "oneOf": _options,
    "allOf": _options,
    "items": _items,
    "additionalProperties": _schema,
    "pattern": _text,
    "$ref": _text,
}
"""What is right of a keyword's value; None if nothing is."""
