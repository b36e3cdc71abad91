"""What was found in a client's schema: the parts that cannot be enforced."""

from dataclasses import dataclass, field
from typing import Any

JSON = Any
"""A parsed JSON value."""
Schema = dict[str, Any] | bool


class SchemaError(ValueError):
    """A part of a strict schema cannot be enforced. The message says which one and why."""

    def __init__(self, reason: str, pointer: str) -> None:
        super().__init__(f"{reason} (at {pointer})")
        self.reason = reason
        self.pointer = pointer
        """The part as a JSON Pointer in the schema, in the form of a URI fragment: #/properties/name."""


@dataclass(slots=True)
class Findings:
    """Collects the parts that are left out of a schema. A strict schema has none."""

    strict: bool
    left_out: list[SchemaError] = field(default_factory=list)

    def leave_out(self, reason: str, pointer: str) -> None:
        """Record a part that cannot be enforced. Raises SchemaError if the schema is strict."""
        error = SchemaError(reason, pointer)
        if self.strict:
            raise error
        self.left_out.append(error)


def child(pointer: str, *keys: str | int) -> str:
    """The pointer to a part of the part at `pointer`."""
    return "/".join([pointer, *(str(key).replace("~", "~0").replace("/", "~1") for key in keys)])
