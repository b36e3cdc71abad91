"""Whatever a client sends as a schema makes a rule, or a SchemaError, which names the part."""

from contextlib import suppress
from typing import Any

import pytest

from api.text.schemas import SchemaError, schema_rule
from api.text.schemas.keywords import ENFORCED, UNENFORCED

KEYWORDS = sorted({*ENFORCED, *UNENFORCED, "$id", "$anchor", "$defs", "definitions", "$schema", "title", "default"})
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, 1e999, "", "x", "[", "http://[x", "http://[x#y", "#", "#/", "#x"),
    *([], [1], [None], [[]], ["x"], ["x", "x"], [{}], [True, False], [{"$ref": "#"}]),
    *({}, {"a": 1}, {"": {}}, {"a": {}}, {"a": "x"}, {"$ref": "#"}, {"type": "string"}, {"type": ["x"]}, {"[": {}}),
]


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("strict", [False, True])
def test_any_value_of_a_keyword_gives_a_rule_or_an_error(keyword: str, strict: bool) -> None:
    for value in VALUES:
        for schema in (
            {keyword: value},
            {"type": "array", keyword: value},
            {"type": "object", "properties": {"a": {keyword: value}}, "$defs": {"b": {keyword: value}}},
        ):
            with suppress(SchemaError):
                assert schema_rule(schema, strict=strict)
