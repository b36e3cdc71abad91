"""The schemas that pydantic writes, and that OpenAI's SDK sends as strict ones."""

import enum
import json
import uuid
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import AnyUrl, BaseModel, Field, SecretStr, TypeAdapter, create_model

from api.text.schemas import SchemaError, schema_rule
from tests.api.text.schemas.walks import accepts


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Tree(BaseModel):
    name: str
    children: list["Tree"]


class Point(NamedTuple):
    x: int
    y: int


TYPES: dict[str, tuple[Any, Any]] = {
    "str": (str, "x"),
    "int": (int, 5),
    "float": (float, 0.5),
    "Decimal": (Decimal, "1.50"),
    "bool": (bool, True),
    "None": (None, None),
    "bytes": (bytes, "x"),
    "Path": (Path, "/x"),
    "SecretStr": (SecretStr, "x"),
    "AnyUrl": (AnyUrl, "https://example.com/"),
    "UUID": (uuid.UUID, str(uuid.UUID(int=5))),
    "datetime": (datetime, "2024-02-29T12:00:00Z"),
    "date": (date, "2024-02-29"),
    "time": (time, "12:00:00Z"),
    "timedelta": (timedelta, "P3D"),
    "IPv4Address": (IPv4Address, "127.0.0.1"),
    "constrained str": (Annotated[str, Field(min_length=2, max_length=5, pattern="^[a-z]+$")], "abc"),
    "constrained int": (Annotated[int, Field(ge=1, lt=10, multiple_of=3)], 6),
    "constrained list": (Annotated[list[int], Field(min_length=1, max_length=2)], [5]),
    "Enum": (Colour, "red"),
    "Literal": (Literal["a", 5, None], 5),
    "Optional": (int | None, None),
    "union": (int | str | list[int], [5]),
    "discriminated union": (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "cat", "lives": 9}),
    "recursive model": (Tree, {"name": "x", "children": [{"name": "y", "children": []}]}),
    "Any": (Any, {"a": [5]}),
    "list": (list[list[str]], [["x"]]),
}
LOOSE: dict[str, tuple[Any, Any, str]] = {
    "set": (set[int], [5, 6], "#/properties/it/uniqueItems"),
    "frozenset": (frozenset[str], ["x"], "#/properties/it/uniqueItems"),
    "dict with keys": (dict[Literal["a"], int], {"a": 5}, "#/properties/it/propertyNames"),
}
OPEN: dict[str, tuple[Any, Any]] = {
    "dict": (dict[str, int], {"a": 5}),
    "Mapping": (Mapping[str, list[int]], {"a": [5]}),
    "dict with patterns": (dict[Annotated[str, Field(pattern="^x")], int], {"x1": 5}),
    "tuple": (tuple[int, str], [5, "x"]),
    "variadic tuple": (tuple[int, ...], [5, 6]),
    "NamedTuple": (Point, [5, 6]),
}


def model(annotation: Any) -> type[BaseModel]:
    return create_model("Answer", it=(annotation, ...))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", [*TYPES, *OPEN])
def test_a_type_of_pydantic_is_enforced(name: str, strict: bool) -> None:
    annotation, value = (TYPES | OPEN)[name]
    schema = model(annotation).model_json_schema()
    rule = schema_rule(schema, strict=strict)
    TypeAdapter(annotation).validate_json(json.dumps(value))
    assert accepts(rule, json.dumps({"it": value}))
    assert not accepts(rule, "{}")


@pytest.mark.parametrize("name", TYPES)
def test_the_sdks_strict_schema_of_a_type_is_enforced(name: str) -> None:
    annotation, value = TYPES[name]
    rule = schema_rule(to_strict_json_schema(model(annotation)), strict=True)
    assert accepts(rule, json.dumps({"it": value}))
    assert not accepts(rule, "{}")


@pytest.mark.parametrize("name", LOOSE)
def test_a_part_of_pydantics_schema_is_left_out_or_refused_by_its_place(name: str) -> None:
    annotation, value, pointer = LOOSE[name]
    schema = model(annotation).model_json_schema()
    rule = schema_rule(schema)
    assert accepts(rule, json.dumps({"it": value}))
    assert not accepts(rule, '{"it": true}')
    with pytest.raises(SchemaError) as raised:
        schema_rule(schema, strict=True)
    assert raised.value.pointer == pointer
