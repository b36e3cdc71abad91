"""The tools of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from api.text.dialects.kinds import Kinds, kinds_of
from api.text.dialects.schema import well_typed
from api.text.guard import FUNCTION
from api.text.schemas import schema_rule
from api.text.schemas.references import References


@dataclass(frozen=True)
class Tool:
    """A function that a request offers."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """A JSON schema; empty for no parameters."""
    strict: bool = False
    """Whether arguments must match the schema exactly. Otherwise they match its supported part."""

    def as_json(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name, "description": self.description or ""}
        return {"type": FUNCTION, "function": function | {"parameters": self.schema()}}

    def schema(self) -> dict[str, Any]:
        return dict(self.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}

    def rule(self) -> str:
        """The rule for its arguments. Raises SchemaError if it is strict and its schema cannot be enforced."""
        return schema_rule(self.schema(), strict=self.strict, is_object=True)

    @cached_property
    def hints(self) -> dict[str, Any]:
        """What is well typed of its schema. The check of strict tools refuses the rest."""
        return dict(well_typed(self.schema()))

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of its named arguments; empty if the schema does not list them at its top."""
        schema: Any = self.hints
        for _ in range(8):  # a reference may lead to the object
            if not isinstance(schema, Mapping) or "$ref" not in schema or "properties" in schema:
                break
            place = self.references.find(str(schema["$ref"]), "")
            schema = well_typed(place.node) if place is not None else {}
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        return properties if isinstance(properties, Mapping) else {}

    def kinds(self, argument: str) -> Kinds:
        """The JSON types that this argument may have."""
        others = self.hints.get("additionalProperties")
        return kinds_of(self.properties.get(argument, others), self.references)

    @cached_property
    def references(self) -> References:
        return References(self.hints)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may or must call."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"]
    parallel: bool = True
    """Whether several calls may be made."""

    def by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}
