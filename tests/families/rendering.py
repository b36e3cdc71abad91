"""Whether a template renders conversations, with everything that was said."""

import json
from typing import Any

from tests.families.conversations import ARGUMENTS, FUNCTION, QUESTION, RULE, WEATHER, calling, result
from tests.families.product import Family, RefusedError

Conversation = tuple[list[dict[str, Any]], bool, tuple[str, ...]]
"""Messages, whether there is a tool, and the texts that must be in the prompt."""


def render_all(family: Family) -> dict[str, str]:
    """By kind of conversation: empty if it is rendered, else why not, or which part is missing."""
    return {kind: _problem(family, kind, *each) for kind, each in _conversations().items()}


def _conversations() -> dict[str, Conversation]:
    ids = ["call_ab12Cd34E", "call_ab12Cd34F"]
    here, there = json.dumps(ARGUMENTS), json.dumps({"city": "Oporto", "days": 3})
    called, results = calling([here], ids[:1]), [result("RESULT-3 sunny", ids[0]), result("RESULT-4 rain", ids[1])]
    both = calling([here, there], ids)
    return {
        "plain": ([QUESTION], False, ("QUESTION-1",)),
        "system": ([RULE, QUESTION], False, ("RULE-2", "QUESTION-1")),
        "tools": ([QUESTION], True, ("QUESTION-1", FUNCTION, "city")),
        "call": ([QUESTION, called, results[0]], True, ("QUESTION-1", FUNCTION, "Lisbon", "RESULT-3")),
        "two calls": ([QUESTION, both, *results], True, ("Lisbon", "Oporto", "RESULT-4")),
    }


def _problem(
    family: Family, kind: str, messages: list[dict[str, Any]], with_tools: bool, parts: tuple[str, ...]
) -> str:
    body = {"model": "m", "messages": messages} | ({"tools": [WEATHER]} if with_tools else {})
    try:
        prompt = family.prompt(body)
    except RefusedError as refusal:
        return f"refused: {str(refusal).rpartition('messages: ')[2]}"
    lost = [part for part in parts if part not in prompt]
    if kind == "call" and not lost and prompt.count(FUNCTION) < 2:
        lost.append("the call")
    if lost:
        return f"lost: {', '.join(lost)}"
    if "{'city': 'Lisbon'" in prompt:
        return "garbled: arguments as Python's repr, not JSON"
    if kind == "call" and '{\\"city\\"' in prompt:
        return "garbled: arguments as JSON within a JSON string"
    return ""
