"""Earlier calls in the form that a template needs."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

Message = dict[str, Any]


def as_objects(message: Message) -> Message:
    """Parse the arguments of calls, because templates convert them to JSON themselves."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        function["arguments"] = _parsed(function["arguments"])
        calls.append(call | {"function": function})
    return message | {"tool_calls": calls}


def with_object_arguments(messages: Sequence[Message]) -> list[Message]:
    """Prepared messages in which the arguments of every call are an object, which some templates need.

    Arguments that were cut become their complete part. Other text becomes the only argument.
    """
    return [
        message | {"tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def object_of(arguments: Any) -> dict[str, Any]:
    """The arguments of a call as an object, as `with_object_arguments` makes it."""
    if isinstance(arguments, str):
        text = arguments
        try:
            arguments = from_json(text, allow_inf_nan=False, allow_partial=True)
        except ValueError:
            arguments = text
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": object_of(function["arguments"])}}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments  # invalid JSON of a model stays as it is
