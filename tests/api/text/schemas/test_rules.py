"""Large schemas, and the cache of rules."""

from typing import Any

import pytest

from api.text.schemas import RuleCache, Schema, SchemaError, rules, schema_rule
from tests.api.text.schemas.walks import accepts

OBJECT: dict[str, Any] = {"type": "object"}


def chain(length: int) -> dict[str, Any]:
    """Definitions that refer to each other, one after the other."""
    links = {f"d{i}": OBJECT | {"properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "null"}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = OBJECT | {"properties": {"x": schema}, "required": ["x"]}
    return schema


LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "references": (chain(3000), "a chain of more than 300 schemas"),
    "levels": (nested(240), "nested more than 110 levels"),
    "more levels": (nested(900), "nested more than 110 levels"),
    "required names": (OBJECT | {"required": [f"p{i}" for i in range(49_000)]}, "more than 4000 properties"),
    "optional properties": (OBJECT | {"properties": {f"p{i}": {} for i in range(2001)}}, "more than 2000 optional"),
    "options": ({"anyOf": [{"const": [i]} for i in range(2001)]}, "more than 2000 options"),
    "lists": ({"enum": [[i] for i in range(2001)]}, "more than 2000 objects and lists"),
    "a constant": ({"const": {f"p{i}": i for i in range(4001)}}, "too large"),
    "items": ({"type": "array", "minItems": 10**9}, "above 1000000"),
    "schemas": ({"allOf": [{"anyOf": [{"minLength": i} for i in range(8)]}] * 8}, "schema too large"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_schema_that_llguidance_does_not_survive_is_refused_or_left_out(name: str) -> None:
    """A chain of a thousand references used up the stack and killed the process."""
    schema, reason = LARGE[name]
    with pytest.raises(SchemaError, match=reason):
        schema_rule(schema, strict=True)
    assert schema_rule(schema).startswith("%json {")


def test_schemas_below_the_limits_are_enforced() -> None:
    assert accepts(schema_rule(chain(140), strict=True), '{"x": {"x": {}}}')
    assert not accepts(schema_rule(chain(140), strict=True), '{"x": 5}')
    many = OBJECT | {"properties": {f"p{i}": {"type": "null"} for i in range(2000)}, "additionalProperties": False}
    assert accepts(schema_rule(many, strict=True), '{"p7": null, "p1999": null}')
    assert accepts(schema_rule(nested(30), strict=True), '{"x": ' * 30 + "null" + "}" * 30)


def test_the_arguments_of_a_function_are_an_object() -> None:
    schemas: list[Schema] = [True, False, {}, {"properties": {}}, {"anyOf": [{"type": "string"}, OBJECT]}]
    for schema in [*schemas, {"type": "string"}]:
        rule = schema_rule(schema, is_object=True)
        assert accepts(rule, "{}")
        assert not accepts(rule, '"x"')


def test_a_rule_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RuleCache(1 << 20)
    first = schema_rule(OBJECT, cache=cache)
    with pytest.raises(SchemaError) as raised:
        schema_rule({"not": {}}, strict=True, cache=cache)
    monkeypatch.setattr(rules, "_make", None)
    assert schema_rule(dict(OBJECT), cache=cache) == first
    with pytest.raises(SchemaError) as again:
        schema_rule({"not": {}}, strict=True, cache=cache)
    assert again.value is not raised.value
    assert str(again.value) == str(raised.value)


def test_the_cache_is_bounded_by_bytes() -> None:
    cache = RuleCache(100_000)
    for number in range(200):
        schema_rule({"const": f"{number} " + "x" * 1000}, cache=cache)
        assert 0 < cache.num_bytes <= 100_000
    schema_rule({"const": "x" * 200_000}, cache=cache)  # larger than the cache
    assert cache.num_bytes <= 100_000


def test_a_small_schema_does_not_become_large() -> None:
    """Properties in place of patterns share one definition. Pointers share their beginnings."""
    schema: dict[str, Any] = {"type": "integer", "not": {}}
    for _ in range(12):
        schema = OBJECT | {"patternProperties": {"^[a-z]$": schema}, "additionalProperties": False}
    rule = schema_rule(schema)
    assert len(rule) < 30_000
    assert accepts(rule, '{"a": {"z": {}}}')
    assert not accepts(rule, '{"a": {"zz": {}}}')
    name = "x" * 1_000_000
    inside: dict[str, Any] = {f"p{number}": {"not": {}} for number in range(1000)}
    with pytest.raises(SchemaError) as raised:
        schema_rule({"properties": {name: {"properties": inside}}}, strict=True)
    assert len(str(raised.value)) < 1000


def test_options_in_options_are_compared_for_a_limited_time() -> None:
    definitions: dict[str, Any] = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 40} for level in range(4)
    }
    one_of = [{"$ref": "#/$defs/d0"}, {"type": "string"}]
    assert schema_rule({"oneOf": one_of, "$defs": definitions | {"d4": OBJECT}})
    names = [f"n{number}" for number in range(20_000)]
    assert schema_rule({"oneOf": [{"enum": names}, {"enum": [f"m{name}" for name in names]}]}, strict=True)
