"""Random schemas: no grammar breaks in mid-answer, and answers to strict schemas match them."""

import json
from random import Random
from typing import Any, Final

import jsonschema
import pytest

from api.text.schemas import SchemaError, json_rule, schema_rule
from tests.api.text.schemas.walks import BrokenGrammarError, walk

NUM_SCHEMAS: Final = 100
NUM_WALKS: Final = 3
NAMES: Final = ("a", "b", "ab", "c")
PATTERNS: Final = ("^a$", "^a", "b$", "^(a|b)$", "^.*$", "", "^[0-9]{1,2}$", "^x+$", "^a?$")
CONSTANTS: Final = (1, 2, "a", "b", "ab", None, True, 1.5, [1], {"a": 1})
SIMPLE: Final = (True, {"type": "integer"}, {"type": "string"}, {"type": "boolean"}, {"type": "number"})
KEYWORDS: Final[dict[str, dict[str, float]]] = {
    "object": {
        "properties": 0.7,
        "patternProperties": 0.4,
        "additionalProperties": 0.5,
        "required": 0.5,
        "minProperties": 0.1,
        "maxProperties": 0.1,
        "propertyNames": 0.03,
        "dependentRequired": 0.03,
    },
    "array": {"items": 0.6, "prefixItems": 0.4, "minItems": 0.4, "maxItems": 0.4, "uniqueItems": 0.05},
    "string": {"minLength": 0.3, "maxLength": 0.3, "pattern": 0.3, "format": 0.2},
    "number": {"minimum": 0.3, "maximum": 0.3, "exclusiveMinimum": 0.2, "exclusiveMaximum": 0.2, "multipleOf": 0.3},
    "": {"allOf": 0.1, "anyOf": 0.1, "oneOf": 0.1, "not": 0.03, "enum": 0.05, "const": 0.04, "$ref": 0.15},
}


def value_of(random: Random, keyword: str, depth: int) -> Any:
    match keyword:
        case "properties":
            return {name: schema(random, depth) for name in random.sample(NAMES, random.randint(1, 3))}
        case "patternProperties":
            return {pattern: schema(random, depth) for pattern in random.sample(PATTERNS, random.randint(1, 2))}
        case "additionalProperties" | "items":
            return random.choice([False, schema(random, depth)])
        case "allOf" | "anyOf" | "oneOf" | "prefixItems":
            return [schema(random, depth) for _ in range(random.randint(1, 3))]
        case "required":
            return random.sample(NAMES, random.randint(0, 2))
        case "not":
            return schema(random, depth)
        case "propertyNames":
            return {"pattern": "^a"}
        case "dependentRequired":
            return {"a": ["b"]}
        case "uniqueItems":
            return random.choice([True, False])
        case "pattern":
            return random.choice([*PATTERNS, "^(?!x)"])
        case "format":
            return random.choice(["date", "uuid", "ipv4", "path"])
        case "enum":
            return random.sample(CONSTANTS, random.randint(1, 4))
        case "const":
            return random.choice(CONSTANTS)
        case "$ref":
            return random.choice(["#", "#/$defs/x", "#/$defs/y"])
        case "multipleOf":
            return random.choice([1, 2, 5, 0.5, 7])
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return random.choice([0, 1, 2, 5, -3, 1.5, 10])
        case _:
            return random.randint(0, 3)


def schema(random: Random, depth: int) -> Any:
    if not depth or random.random() < 0.15:
        return random.choice([*SIMPLE, {"const": random.choice(CONSTANTS)}, random.random() < 0.7])
    types = random.sample(["object", "array", "string", "number", "integer", "null"], random.choice([1, 1, 1, 2]))
    found: dict[str, Any] = {"type": types if len(types) > 1 else types[0]} if random.random() < 0.7 else {}
    for kind, keywords in KEYWORDS.items():
        likely = 1 if not kind or kind in types or (kind, "integer") == ("number", *types) else 0.1
        for keyword, share in keywords.items():
            if random.random() < share * likely:
                found[keyword] = value_of(random, keyword, depth - 1)
    shuffled = list(found.items())
    random.shuffle(shuffled)
    return dict(shuffled)


def random_schema(seed: int) -> dict[str, Any]:
    random = Random(seed)
    root = schema(random, 3)
    return (root if isinstance(root, dict) else {}) | {"$defs": {"x": schema(random, 2), "y": schema(random, 2)}}


@pytest.mark.parametrize("strict", [True, False])
def test_no_grammar_breaks_in_mid_answer(strict: bool) -> None:
    num_answers = num_valid = num_refused = 0
    for seed in range(NUM_SCHEMAS):
        wanted = random_schema(seed)
        try:
            rule = schema_rule(wanted, strict=strict)
        except SchemaError:
            assert strict
            num_refused += 1
            continue
        for number in range(NUM_WALKS):
            answer = walk(rule, Random(number))
            if answer is None:
                continue
            num_answers += 1
            value = json.loads(answer)
            if strict and json.dumps(value, ensure_ascii=False).encode() == answer:  # llguidance lets keys repeat
                jsonschema.validate(value, wanted)
                num_valid += 1
    assert num_answers > NUM_SCHEMAS
    assert not strict or (num_valid > 0.5 * NUM_SCHEMAS and 10 < num_refused < 0.6 * NUM_SCHEMAS)


def test_walks_find_grammars_that_break() -> None:
    """The schema of the report: the pattern has no name left, but a comma may follow."""
    broken = {
        "type": "object",
        "properties": {"score": {"type": "integer"}, "ok": {"type": "boolean"}},
        "additionalProperties": False,
        "patternProperties": {"^score$": {"type": "integer"}},
    }
    num_broken = 0
    for number in range(20):
        try:
            walk(json_rule(broken), Random(number))
        except BrokenGrammarError:
            num_broken += 1
    assert num_broken
    answers = [walk(schema_rule(broken, strict=True), Random(number)) for number in range(20)]
    assert any(answer is not None and b"score" in answer and b"ok" in answer for answer in answers)
