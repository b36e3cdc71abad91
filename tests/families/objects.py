"""The objects that the test cases of test-chat.cpp consist of, as the interpreter keeps them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final


class NotUnderstoodError(Exception):
    """The source has C++ that the interpreter does not know."""


class Opaque:
    """A value that could not be computed. It matters only if a case uses it."""


MESSAGE_FIELDS: Final = (
    "role",
    "content",
    "content_parts",
    "tool_calls",
    "reasoning_content",
    "tool_name",
    "tool_call_id",
)


def make_message(values: Sequence[Any] = ()) -> SimpleNamespace:
    message = SimpleNamespace(
        role="", content="", content_parts=[], tool_calls=[], reasoning_content="", tool_name="", tool_call_id=""
    )
    for name, value in zip(MESSAGE_FIELDS, values, strict=False):
        setattr(message, name, value)
    return message


def as_text(value: Any) -> str:
    """A string. C++ may write the empty one as `{}`. Raises NotUnderstoodError for other values."""
    if value == [] or value is None:
        return ""
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{value!r} is no string")
    return value


@dataclass
class Builder:
    """A test case under construction: `tst.test(...)` makes it, and the calls chained to it add to it."""

    template: str
    raw: str
    """The model's output."""
    site: int
    """Index of the token `test`."""
    given: dict[str, Any] = field(default_factory=dict)
    expected: SimpleNamespace = field(default_factory=make_message)

    def apply(self, method: str, args: list[Any]) -> None:
        match method:
            case "expect":
                self.expected = copy.deepcopy(args[0])
            case "expect_content":
                self.expected.content = as_text(args[0])
            case "expect_reasoning":
                self.expected.reasoning_content = as_text(args[0])
            case "expect_tool_calls":
                self.expected.tool_calls = args[0]
            case "expect_reconstruction":
                pass  # concerns the rendering of the parsed message, not the answer
            case _:
                self.given[method] = args[0] if args else True


@dataclass
class Function:
    parameters: list[tuple[str, tuple[int, int] | None]]
    """Names, and the tokens of the default values (first, behind the last)."""
    body: int
    """Index of its opening brace."""
