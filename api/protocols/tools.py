"""Which of a request's tools the answer may or must call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.errors import ApiError
from api.text.dialects import Tool, ToolUse


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["none", "auto", "required"] = "auto"
    names: Sequence[str] | None = None
    """Only these; None for all."""
    parallel: bool = True
    """Whether several calls may be made."""


def tool_use(tools: Sequence[Tool], choice: ToolChoice) -> ToolUse | None:
    """The tools that may be called; None if there are none. Raises ApiError 400 if the choice does not fit them."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "Two of the tools have the same name.", param="tools", code="invalid_value")
    if not names and (choice.names is not None or choice.mode == "required"):
        raise ApiError(400, "'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
    unknown = next((name for name in choice.names or () if name not in names), None)
    if unknown is not None:
        message = f"Tool {unknown!r} is not among the tools."
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    if not tools or choice.mode == "none":
        return None
    allowed = tuple(tool for tool in tools if choice.names is None or tool.name in choice.names)
    return ToolUse(allowed, choice.mode, choice.parallel)
