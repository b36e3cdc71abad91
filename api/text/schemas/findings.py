"""What was found in a client's schema: the parts that cannot be enforced."""

from dataclasses import dataclass, field
from typing import Any, Final

JSON = Any
"""A parsed JSON value."""
Schema = dict[str, Any] | bool

MAX_KEY: Final = 100
"""Characters of a key in a message."""
MAX_KEYS: Final = 30
"""Keys of a pointer in a message."""
MAX_LEFT_OUT: Final = 100
"""Parts of a schema that are recorded as left out."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A part of a schema. Its text is made when it is needed: a key may have megabytes and thousands of parts inside.

    The text is a JSON Pointer in the form of a URI fragment: #/properties/name.
    """

    parent: "Pointer | None" = None
    key: str | int = ""

    def __str__(self) -> str:
        keys: list[str] = []
        place = self
        while place.parent is not None:
            key = str(place.key)
            shown = key if len(key) <= MAX_KEY else f"{key[:MAX_KEY]}..."
            keys.append(shown.replace("~", "~0").replace("/", "~1"))
            place = place.parent
        if len(keys) > MAX_KEYS:
            keys[MAX_KEYS // 2 : -MAX_KEYS // 2] = ["..."]
        return "/".join(["#", *reversed(keys)])


ROOT: Final = Pointer()


class SchemaError(ValueError):
    """A part of a strict schema cannot be enforced. The message says which one and why."""

    def __init__(self, reason: str, pointer: str) -> None:
        super().__init__(f"{reason} (at {pointer})")
        self.reason = reason
        self.pointer = pointer


@dataclass(slots=True)
class Findings:
    """Collects the parts that are left out of a schema. A strict schema has none."""

    strict: bool
    left_out: list[SchemaError] = field(default_factory=list)

    def leave_out(self, reason: str, pointer: Pointer) -> None:
        """Record a part that cannot be enforced. Raises SchemaError if the schema is strict."""
        if self.strict:
            raise SchemaError(reason, str(pointer))
        if len(self.left_out) < MAX_LEFT_OUT:
            self.left_out.append(SchemaError(reason, str(pointer)))


def child(pointer: Pointer, *keys: str | int) -> Pointer:
    """The pointer to a part of the part at `pointer`."""
    for key in keys:
        pointer = Pointer(pointer, key)
    return pointer
