"""Which of a request's tools the answer may or must call, and the arguments of its calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic_core import from_json, to_json

from api.errors import ApiError
from api.text.dialects import Tool, ToolUse


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["none", "auto", "required"] = "auto"
    names: Sequence[str] | None = None
    """Only these; None for all."""
    parallel: bool = True
    """Whether several calls may be made."""


def tool_use(tools: Sequence[Tool], choice: ToolChoice, left_out: Sequence[str] = ()) -> ToolUse | None:
    """The tools that may be called; None if there are none. Raises ApiError 400 if the choice does not fit them.

    `left_out`: names of tools that the request has but the model does not get.
    """
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "Two of the tools have the same name.", param="tools", code="invalid_value")
    if not names and not left_out and (choice.names is not None or choice.mode == "required"):
        raise ApiError(400, "'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
    unknown = next((name for name in choice.names or () if name not in names), None)
    if unknown is not None:
        message = f"Tool {unknown!r} is not among the tools."
        if unknown in left_out:
            message = f"The tool {unknown!r} does not exist on this server and cannot be chosen; choose a function."
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    if choice.mode == "none":
        return None
    allowed = tuple(tool for tool in tools if choice.names is None or tool.name in choice.names)
    if not allowed and choice.mode == "required":
        message = (
            f"'tool_choice' asks for a call, but none of these tools exists on this server: {', '.join(left_out)}."
        )
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    return ToolUse(allowed, choice.mode, choice.parallel) if allowed else None


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments of a call. Arguments that were cut are parsed up to the cut, as SDKs do with streams."""
    try:
        plain = to_json(from_json(text, allow_inf_nan=False, allow_partial=True), inf_nan_mode="null")
        found = orjson.loads(plain)  # NaN and infinity have become null
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
