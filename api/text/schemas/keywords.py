"""The keywords of JSON Schema 2020-12 and of older drafts: which values they have, and which can be enforced."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""The formats that llguidance enforces. Others are annotations, as JSON Schema has it."""
MAX_ALTERNATIVES: Final = 40_000
"""Maximum number of values of an `enum`, and of texts to choose from. llguidance takes about 50,000 in a schema."""
MAX_EXACT: Final = 2**53
"""llguidance reads numbers as doubles: larger integers are not exact."""
MIN_EXACT: Final = 1e-15
"""llguidance writes numbers without exponents: smaller ones have too many digits."""


def is_count(value: object) -> bool:
    """JSON Schema counts 2.0 as an integer."""
    return is_number(value) and value >= 0 and value == int(value)  # type: ignore[operator,call-overload]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_exact(value: float) -> bool:
    """Whether llguidance can enforce a number as a bound or a constant."""
    return value == 0 or MIN_EXACT <= abs(value) <= MAX_EXACT


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_schemas(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_schema, value))


def _is_items(value: object) -> bool:
    return _is_schema(value) or _is_list(value)


def _is_schema_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each in TYPES for each in value)
    return isinstance(value, str) and value in TYPES


def _is_bound(value: object) -> bool:
    return isinstance(value, bool) or is_number(value)  # draft 4: whether `minimum` or `maximum` itself is excluded


def _is_text(value: object) -> bool:
    return isinstance(value, str)


Check = tuple[Callable[[object], bool], str]

_COUNT: Final[Check] = (is_count, "a non-negative integer")
_NUMBER: Final[Check] = (is_number, "a number")
_BOUND: Final[Check] = (_is_bound, "a number")
_TEXT: Final[Check] = (_is_text, "a string")
_SCHEMA: Final[Check] = (_is_schema, "a schema (an object, true or false)")
_SCHEMAS: Final[Check] = (_is_schemas, "a list of one or more schemas")
_SCHEMA_MAP: Final[Check] = (_is_schema_map, "an object whose values are schemas")

ENFORCED: Final[Mapping[str, Check]] = {
    "$ref": _TEXT,
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
    "const": (lambda _: True, ""),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of one or more values"),
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "items": (_is_items, "a schema"),
    "additionalItems": _SCHEMA,
    "prefixItems": (_is_list, "a list of schemas"),
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "properties": _SCHEMA_MAP,
    "patternProperties": _SCHEMA_MAP,
    "additionalProperties": _SCHEMA,
    "required": (_is_names, "a list of strings"),
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": _TEXT,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _BOUND,
    "exclusiveMaximum": _BOUND,
    "multipleOf": (lambda value: is_number(value) and value > 0, "a number above 0"),  # type: ignore[operator]
}
"""The keywords that can be enforced, at least in most schemas, and the values that JSON Schema allows for them."""

_EMPTY: Final[tuple[bool | dict[str, Any], ...]] = (True, {})


def _of_conditional(schema: Mapping[str, Any]) -> bool:
    return "then" not in schema and "else" not in schema


UNENFORCED: Final[Mapping[str, Callable[[Mapping[str, Any]], bool]]] = {
    "not": lambda schema: schema["not"] is False,
    "if": _of_conditional,
    "contains": lambda schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "uniqueItems": lambda schema: schema["uniqueItems"] is False,
    "unevaluatedItems": lambda schema: schema["unevaluatedItems"] in _EMPTY,
    "unevaluatedProperties": lambda schema: schema["unevaluatedProperties"] in _EMPTY,
    "propertyNames": lambda schema: schema["propertyNames"] in (*_EMPTY, {"type": "string"}),
    "dependentRequired": lambda schema: not schema["dependentRequired"],
    "dependentSchemas": lambda schema: not schema["dependentSchemas"],
    "dependencies": lambda schema: not schema["dependencies"],
    "$dynamicRef": lambda _: False,
    "$recursiveRef": lambda _: False,
}
"""The keywords that llguidance cannot enforce, and whether they demand nothing in a schema.

All other keywords are annotations, or mean nothing without one of these.
"""
NEEDED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "properties": ("additionalProperties", "minProperties", "maxProperties"),
    "patternProperties": ("additionalProperties",),
    "prefixItems": ("items",),
}
"""The keywords whose meaning depends on another one: they are left out with it."""
