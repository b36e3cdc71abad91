"""The tools of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from api.text.schemas import schema_rule


@dataclass(frozen=True, slots=True)
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
        return {"type": "function", "function": function | {"parameters": self.schema()}}

    def schema(self) -> dict[str, Any]:
        return dict(self.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}

    def rule(self) -> str:
        """The rule for its arguments. Raises SchemaError if it is strict and its schema cannot be enforced."""
        return schema_rule(self.schema(), strict=self.strict, is_object=True)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may or must call."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"]
    parallel: bool = True
    """Whether several calls may be made."""
