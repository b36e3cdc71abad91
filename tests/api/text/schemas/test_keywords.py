"""Each keyword of JSON Schema, strict and as a hint."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from api.text.schemas import MAX_ALTERNATIVES, SchemaError, schema_rule
from tests.api.text.schemas.walks import accepts

VOCABULARIES = ("core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "content")
TEXT: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}


@dataclass(frozen=True)
class Case:
    schema: Any
    good: tuple[Any, ...]
    """Values that match, also if unsupported parts are left out."""
    bad: tuple[Any, ...] = ()
    """Values that do not match even then."""
    refused: str = ""
    """The part for which the schema is refused if it is strict; empty if it is enforced."""


def thing(**properties: Any) -> dict[str, Any]:
    """A closed object with these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


ENFORCED: dict[str, Case] = {
    "type": Case(TEXT, ("x",), (5,)),
    "type with several": Case({"type": ["string", "null"]}, ("x", None), (5,)),
    "enum": Case({"enum": ["x", 5, None, [1], {"a": 1}]}, ("x", 5, None, [1], {"a": 1}), ("y", [2])),
    "const": Case({"const": {"a": [1, "x"]}}, ({"a": [1, "x"]},), ({"a": [1]},)),
    "multipleOf": Case({"type": "integer", "multipleOf": 5}, (10, 0), (12,)),
    "maximum": Case(INTEGER | {"maximum": 5}, (5,), (6,)),
    "exclusiveMaximum": Case(INTEGER | {"exclusiveMaximum": 5}, (4,), (5,)),
    "exclusiveMaximum of draft 4": Case(INTEGER | {"exclusiveMaximum": True, "maximum": 5}, (4,), (5,)),
    "minimum": Case(INTEGER | {"minimum": 5}, (5,), (4,)),
    "exclusiveMinimum": Case(INTEGER | {"exclusiveMinimum": 5}, (6,), (5,)),
    "maxLength": Case(TEXT | {"maxLength": 2}, ("xy",), ("xyz",)),
    "minLength": Case(TEXT | {"minLength": 2.0}, ("xy",), ("x",)),
    "pattern": Case(TEXT | {"pattern": "^[a-c]+$"}, ("abc",), ("abd",)),
    "maxItems": Case({"type": "array", "maxItems": 1}, ([1],), ([1, 2],)),
    "minItems": Case({"type": "array", "minItems": 1}, ([1],), ([],)),
    "maxProperties": Case({"type": "object", "maxProperties": 1}, ({"a": 1},), ({"a": 1, "b": 2},)),
    "minProperties": Case({"type": "object", "minProperties": 1}, ({"a": 1},), ({},)),
    "required": Case({"type": "object", "required": ["a"]}, ({"a": 1},), ({"b": 1},)),
    "allOf": Case({"allOf": [TEXT, {"minLength": 2}]}, ("xy",), ("x", 5)),
    "anyOf": Case({"anyOf": [TEXT, INTEGER]}, ("x", 5), (None,)),
    "oneOf": Case({"oneOf": [TEXT, INTEGER]}, ("x", 5), (None,)),
    "oneOf beside anyOf": Case({"oneOf": [TEXT, INTEGER], "anyOf": [TEXT, {"type": "null"}]}, ("x",), (5, None)),
    "oneOf with a discriminator": Case(
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "$defs": {"a": thing(kind={"const": "a"}), "b": thing(kind={"enum": ["b", "c"]})},
            "discriminator": {"propertyName": "kind"},
        },
        ({"kind": "a"}, {"kind": "c"}),
        ({"kind": "d"},),
    ),
    "prefixItems": Case({"type": "array", "prefixItems": [TEXT], "items": False}, (["x"],), ([5], ["x", "y"])),
    "items": Case({"type": "array", "items": TEXT}, (["x", "y"],), ([5],)),
    "items of draft 7": Case({"type": "array", "items": [TEXT], "additionalItems": INTEGER}, (["x", 5],), ([5],)),
    "properties": Case({"type": "object", "properties": {"a": TEXT}}, ({"a": "x"}, {"b": 5}), ({"a": 5},)),
    "patternProperties": Case({"type": "object", "patternProperties": {"^x": TEXT}}, ({"x1": "x"},), ({"x1": 5},)),
    "patternProperties of few names": Case(
        thing(a=INTEGER) | {"patternProperties": {"^(a|b)$": {"minimum": 5}}},
        ({"a": 5}, {"a": 5, "b": 6}),
        ({"a": 4}, {"a": 5, "b": 4}, {"a": 5, "c": 5}),
    ),
    "additionalProperties": Case({"type": "object", "additionalProperties": TEXT}, ({"a": "x"},), ({"a": 5},)),
    "unevaluatedProperties": Case(
        {"type": "object", "properties": {"a": TEXT}, "unevaluatedProperties": False}, ({"a": "x"},), ({"b": 1},)
    ),
    "unevaluatedItems": Case({"type": "array", "unevaluatedItems": False}, ([],), ([1],)),
    "$ref": Case({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": TEXT}}, ("x",), (5,)),
    "$ref to the whole": Case({"type": "array", "items": {"$ref": "#"}}, ([], [[], [[]]]), ([5],)),
    "$anchor": Case({"$ref": "#here", "$defs": {"a": TEXT | {"$anchor": "here"}}}, ("x",), (5,)),
    "$id": Case(
        {
            "$id": "https://example.com/root",
            "$ref": "other",
            "$defs": {"a": {"$id": "other", "$ref": "#/$defs/b", "$defs": {"b": TEXT}}, "b": INTEGER},
        },
        ("x",),
        (5,),
    ),
    "$defs": Case({"$defs": {"unused": {"type": "strin", "not": {}}}, "type": "string"}, ("x",), (5,)),
    "definitions": Case({"definitions": {"a": TEXT}, "$ref": "#/definitions/a"}, ("x",), (5,)),
    "format": Case(TEXT | {"format": "date"}, ("2024-02-29",), ("yesterday",)),
    "unknown format": Case(TEXT | {"format": "path"}, ("/x",), (5,)),
}
ANNOTATIONS: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$vocabulary": {"https://example.com/vocabulary": True},
    "$comment": "x",
    "$dynamicAnchor": "x",
    "title": "x",
    "description": "x",
    "default": 5,
    "deprecated": True,
    "readOnly": True,
    "writeOnly": True,
    "examples": [5],
    "contentEncoding": "base64",
    "contentMediaType": "text/plain",
    "contentSchema": {"not": {}},
    "nullable": True,
    "x-guidance": {"lenient": True},
    # these mean nothing without another keyword, or with this value
    "then": False,
    "else": False,
    "minContains": 5,
    "maxContains": 5,
    "uniqueItems": False,
    "not": False,
    "if": False,
    "propertyNames": {"type": "string"},
    "dependentRequired": {},
    "dependentSchemas": {},
}
UNENFORCED: dict[str, Case] = {
    "not": Case(TEXT | {"not": {"const": "y"}}, ("x", "y"), (5,), "#/not"),
    "if": Case(TEXT | {"if": {"minLength": 2}, "then": {"pattern": "^x"}}, ("yy",), (5,), "#/if"),
    "then": Case(TEXT | {"if": True, "then": {"minLength": 2}}, ("x",), (5,), "#/if"),
    "else": Case(TEXT | {"if": False, "else": {"minLength": 2}}, ("x",), (5,), "#/if"),
    "dependentSchemas": Case(
        thing(a=TEXT) | {"dependentSchemas": {"a": False}}, ({"a": "x"},), ({},), "#/dependentSchemas"
    ),
    "dependentRequired": Case(
        thing(a=TEXT) | {"dependentRequired": {"a": ["b"]}}, ({"a": "x"},), ({},), "#/dependentRequired"
    ),
    "dependencies": Case(thing(a=TEXT) | {"dependencies": {"a": ["b"]}}, ({"a": "x"},), ({},), "#/dependencies"),
    "contains": Case({"type": "array", "contains": TEXT}, ([5],), (5,), "#/contains"),
    "minContains": Case({"type": "array", "contains": TEXT, "minContains": 2}, ([5],), (5,), "#/contains"),
    "maxContains": Case({"type": "array", "contains": TEXT, "maxContains": 2}, ([5],), (5,), "#/contains"),
    "uniqueItems": Case({"type": "array", "items": TEXT, "uniqueItems": True}, (["x", "x"],), ([5],), "#/uniqueItems"),
    "propertyNames": Case(
        {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": TEXT},
        ({"b": "x"},),
        ({"b": 5},),
        "#/propertyNames",
    ),
    "unevaluatedItems": Case(
        {"type": "array", "allOf": [{"prefixItems": [TEXT]}], "unevaluatedItems": False},
        (["x", 5],),
        ([5],),
        "#/unevaluatedItems",
    ),
    "unevaluatedProperties": Case(
        {"type": "object", "allOf": [{"properties": {"a": TEXT}}], "unevaluatedProperties": False},
        ({"a": "x", "b": 5},),
        ({"a": 5},),
        "#/unevaluatedProperties",
    ),
    "$dynamicRef": Case(TEXT | {"$dynamicRef": "#x"}, ("x",), (5,), "#/$dynamicRef"),
    "$recursiveRef": Case(TEXT | {"$recursiveRef": "#"}, ("x",), (5,), "#/$recursiveRef"),
    "$ref to elsewhere": Case(thing(a={"$ref": "https://example.com/x"}), ({"a": 5},), ({},), "#/properties/a/$ref"),
    "overlapping oneOf": Case({"oneOf": [TEXT, {"minLength": 2}]}, ("xyz", 5), (), "#/oneOf"),
    "a look-ahead": Case(thing(a=TEXT | {"pattern": "^(?!x)"}), ({"a": "x"},), ({"a": 5},), "#/properties/a/pattern"),
    "a pattern of a name": Case(
        {"type": "object", "patternProperties": {"^(?!x)": TEXT}, "additionalProperties": False},
        ({"a": 5},),
        (5,),
        "#/patternProperties/^(?!x)",
    ),
    "minProperties": Case(
        {"type": "object", "properties": {"a": TEXT}, "minProperties": 1}, ({},), ({"a": 5},), "#/minProperties"
    ),
    "minProperties above 1": Case(
        {"type": "object", "minProperties": 2}, ({"a": 1, "b": 2},), ({"a": 1},), "#/minProperties"
    ),
    "an inexact number": Case(INTEGER | {"minimum": 1e30}, (5,), ("x",), "#/minimum"),
    "an inexact constant": Case(INTEGER | {"const": 2**60 + 1}, (5,), ("x",), "#/const"),
    "too many values": Case(TEXT | {"enum": list(map(str, range(MAX_ALTERNATIVES + 1)))}, ("x",), (5,), "#/enum"),
    # wrong values of keywords
    "an unknown type": Case(thing(a={"type": "strin"}), ({"a": 5},), ({},), "#/properties/a/type"),
    "a wrong minLength": Case(TEXT | {"minLength": -1}, ("",), (5,), "#/minLength"),
    "a wrong required": Case({"type": "object", "required": "a"}, ({},), (5,), "#/required"),
    "a wrong anyOf": Case(TEXT | {"anyOf": []}, ("x",), (5,), "#/anyOf"),
    "wrong properties": Case(
        {"type": "object", "properties": [], "additionalProperties": False}, ({"a": 5},), (5,), "#/properties"
    ),
    # no value matches
    "required but forbidden": Case(
        {"type": "object", "required": ["a"], "properties": {"b": TEXT}, "additionalProperties": False},
        ({"a": 5}, {"b": "x", "a": 5}),
        ({"b": 5, "a": 5},),
        "#/additionalProperties",
    ),
    "required and false": Case(thing(a=TEXT, b=False), ({"a": "x"},), ({"a": 5},), "#/required"),
    "enum against type": Case(thing(a=TEXT | {"enum": [1]}), ({"a": "x"},), ({"a": 5},), "#/properties/a/enum"),
    "const against type": Case(TEXT | {"const": 1}, ("x",), (5,), "#/const"),
    "items": Case({"type": "array", "minItems": 3, "maxItems": 2}, ([1, 2, 3],), ([1],), "#/maxItems"),
    "length": Case(TEXT | {"minLength": 3, "maxLength": 2}, ("xyz",), ("x",), "#/maxLength"),
    "range": Case(INTEGER | {"minimum": 3, "maximum": 2}, (3,), (2,), "#/maximum"),
    "multiples": Case(INTEGER | {"minimum": 1, "maximum": 2, "multipleOf": 5}, (1,), (3,), "#/multipleOf"),
    "pattern against format": Case(TEXT | {"format": "ipv4", "pattern": "^x"}, ("127.0.0.1",), ("x",), "#/pattern"),
    "allOf": Case({"type": "string", "allOf": [INTEGER]}, ("x",), (5,), "#/allOf"),
    "in a list": Case(
        {"type": "array", "items": TEXT | {"minLength": 3, "maxLength": 2}, "minItems": 1},
        (["xyz"],),
        (["x"],),
        "#/items/maxLength",
    ),
    "in a definition": Case(
        {"$ref": "#/$defs/a", "$defs": {"a": TEXT | {"const": 1}}}, ("x",), (5,), "#/$defs/a/const"
    ),
    "without end": Case(thing(a=TEXT, next={"$ref": "#"}), ({"a": "x", "next": 5},), ({},), "#/properties/next/$ref"),
    "false": Case(False, (5, "x"), (), "#"),
}


def test_the_tables_have_all_keywords() -> None:
    vocabularies = [REGISTRY.contents(f"https://json-schema.org/draft/2020-12/meta/{name}") for name in VOCABULARIES]
    keywords = {keyword for vocabulary in vocabularies for keyword in vocabulary["properties"]}
    assert len(keywords) > 55
    assert not keywords - {*ENFORCED, *ANNOTATIONS, *UNENFORCED}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ENFORCED)
def test_a_keyword_is_enforced(name: str, strict: bool) -> None:
    case = ENFORCED[name]
    check(schema_rule(case.schema, strict=strict), case)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_an_annotation_demands_nothing(name: str, strict: bool) -> None:
    assert schema_rule(TEXT | {name: ANNOTATIONS[name]}, strict=strict) == schema_rule(TEXT)


@pytest.mark.parametrize("name", UNENFORCED)
def test_a_part_that_cannot_be_enforced_is_left_out_or_refused_by_its_place(name: str) -> None:
    case = UNENFORCED[name]
    check(schema_rule(case.schema), case)
    with pytest.raises(SchemaError) as raised:
        schema_rule(case.schema, strict=True)
    assert raised.value.pointer == case.refused
    reason = str(raised.value)
    assert not [word for word in ("x-guidance", "coerce", "lenient", "llguidance", "Unimplemented") if word in reason]
    assert len(reason) < 300


def check(rule: str, case: Case) -> None:
    for value in case.good:
        assert accepts(rule, json.dumps(value)), (value, rule[:500])
    for value in case.bad:
        assert not accepts(rule, json.dumps(value)), (value, rule[:500])
