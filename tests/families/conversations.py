"""The conversations that every template is tried with."""

from collections.abc import Sequence
from typing import Any, Final

from tests.families.cases import call

FUNCTION: Final = "get_weather_at"
WEATHER: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city", "days"],
        },
    },
}
ARGUMENTS: Final[dict[str, Any]] = {"city": "Lisbon", "days": 3}

QUESTION: Final[dict[str, Any]] = {"role": "user", "content": "QUESTION-1 please"}
RESULT: Final = "RESULT-3"
RULE: Final[dict[str, Any]] = {"role": "system", "content": "RULE-2 holds"}


def calling(arguments: Sequence[Any], ids: Sequence[str]) -> dict[str, Any]:
    """An assistant message with a call for each of these arguments."""
    calls = [call(FUNCTION, each, call_id) for each, call_id in zip(arguments, ids, strict=True)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(content: str, call_id: str) -> dict[str, Any]:
    """The message of a tool."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}
