"""Which JSON types an argument may have by its tool's schema."""

from collections.abc import Mapping
from typing import Any, Final

from api.text.schemas.references import References

Kinds = frozenset[str]
ALL_KINDS: Final[Kinds] = frozenset({"string", "number", "boolean", "object", "array", "null"})
_MAX_DEPTH: Final = 16
"""References that lead to references. A schema may refer to itself."""


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    match value:
        case str():
            return "string"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case None:
            return "null"
        case Mapping():
            return "object"
        case _:
            return "array"


def kinds_of(schema: Any, references: References, depth: int = 0) -> Kinds:
    """The types that a schema allows. A schema that says nothing about types allows all."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return ALL_KINDS
    kinds = _named(schema)
    if isinstance(reference := schema.get("$ref"), str):
        place = references.find(reference, "")
        kinds &= kinds_of(place.node, references, depth + 1) if place is not None else ALL_KINDS
    if "const" in schema:
        kinds &= {kind_of(schema["const"])}
    if isinstance(values := schema.get("enum"), list):
        kinds &= {kind_of(value) for value in values}
    for keyword in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(keyword), list) and options:
            kinds &= frozenset().union(*(kinds_of(option, references, depth + 1) for option in options))
    for part in parts if isinstance(parts := schema.get("allOf"), list) else ():
        kinds &= kinds_of(part, references, depth + 1)
    return kinds or ALL_KINDS


def _named(schema: Mapping[str, Any]) -> Kinds:
    named = schema.get("type")
    names = {named} if isinstance(named, str) else set(map(str, named)) if isinstance(named, list) else set()
    kinds = {"number" if name == "integer" else name for name in names} & ALL_KINDS
    if kinds and schema.get("nullable") is True:
        kinds |= {"null"}
    return frozenset(kinds) or ALL_KINDS
