"""Calls and conversations with calls as the template itself writes them, without what Cortex prepares for it."""

import json
import re
from collections.abc import Iterator
from itertools import product, takewhile
from typing import Any, Final

from tests.families.conversations import ARGUMENTS, FUNCTION, QUESTION, RESULT, WEATHER, calling, result
from tests.families.product import BareTemplate, Family

_ENDS: Final = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<end_of_turn>"),
    *(
        "<turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<\uff5cend▁of▁sentence\uff5c>",
        "</s>",
        "<eos>",
        "[e~[",
        "<|eot|>",
        "<|eom|>",
    ),
    *("<|end_of_text|>", "<|role_end|>", "<|end_of_msg|>", "<|observation|>", "<|message_sep|>", "</assistant>"),
    *("<|END_OF_MESSAGE|>", "<SPECIAL_12>", "<seed:eos>", "<|assistant_end|>", "<|user|>", "<|im_user|>", "<sep>"),
    *("<|tool_response>", "<|calls|>", "<|im_system|>", "<end_of_sentence>"),
)
"""Marks that end an assistant's turn, in all families."""
OPENS_THOUGHT: Final = re.compile(
    r"(<(?:\w+:)?think(?:ing)?>|\[THINK\]|<\|START_THINKING\|>|<\|channel>thought|<\|open\|>think<\|sep\|>)\s*$"
)
"""The end of a prompt that begins a thought."""
_SWITCHES: Final[tuple[dict[str, bool], ...]] = (
    {},
    {"enable_thinking": False},
    {"enable_thinking": False, "thinking": False},
)
_IDS: Final = (("c00ab1Cd3", "c00ab1Cd4"), ("functions.get_weather_at:0", "functions.get_weather_at:1"))


def _ends_thought(opening: str) -> str:
    match opening:
        case "[THINK]":
            return "[/THINK]"
        case "<|START_THINKING|>":
            return "<|END_THINKING|>"
        case "<|channel>thought":
            return "<channel|>"
        case "<|open|>think<|sep|>":
            return "<|close|>think<|sep|>"
    return opening.replace("<", "</", 1)


def written_call(template: BareTemplate, family: Family, count: int) -> tuple[str, dict[str, bool]] | None:
    """What the template writes after the prompt for a turn of so many calls, up to the end of the turn.

    Also returns the variables of the template that this prompt needs. None if the template writes no calls.
    """
    shared = {"messages": [QUESTION], "tools": [WEATHER], "add_generation_prompt": True}
    for variables, messages in product(_SWITCHES, _histories(count)):
        history = shared | {"messages": messages, "add_generation_prompt": False}
        body = {"model": "m", "messages": [QUESTION], "tools": [WEATHER], "chat_template_kwargs": variables}
        try:
            prompt = template.render(shared | variables)
            called = template.render(history | variables)
            asked = family.prompt(body)
        except Exception:  # a template may raise anything, and may render the next history
            continue
        text = _up_to_end(_behind(called, prompt))
        if text.count(FUNCTION) < count or "{'city'" in text or '{\\"city\\"' in text:
            continue
        opening = OPENS_THOUGHT.search(asked)
        if opening and _ends_thought(opening[1]) not in text:
            text = f"Hm.\n{_ends_thought(opening[1])}\n\n{text}"
        return text, variables
    return None


def _histories(count: int) -> Iterator[list[dict[str, Any]]]:
    """Conversations with a turn of so many calls. Templates differ in the ids and arguments that they accept."""
    for ids, arguments, with_results in product(_IDS, (ARGUMENTS, json.dumps(ARGUMENTS)), (False, True)):
        results = [result(RESULT, call_id) | {"name": FUNCTION} for call_id in ids[:count]]
        yield [QUESTION, calling([arguments] * count, ids[:count]), *(results if with_results else [])]


def _behind(called: str, prompt: str) -> str:
    """The part of `called`, the rendering of a conversation that ends with calls, after the prompt."""
    for before in (prompt, OPENS_THOUGHT.sub("", prompt)):
        if called.startswith(before):
            return called[len(before) :]
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(called, prompt, strict=False)))
    broken = re.search(r"[<\[][^\s<>\[\]]{0,30}$", common)  # both have the beginning of a mark, but not the same mark
    return called[broken.start() if broken else len(common) :]


def _up_to_end(text: str) -> str:
    """The text up to the first end of a turn, or the first result, after the last call."""
    at = text.rfind(FUNCTION)
    ends = [found for end in (*_ENDS, RESULT) if (found := text.find(end, at)) >= 0]
    return text[: min(ends)] if ends else text


def refusal_of_calls(template: BareTemplate, source: str) -> str:
    """Why the template raises on a call with a result, however the arguments are given; empty if it does not."""
    if "tool_calls" not in source:
        return ""
    why = ""
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
        (call_id, _), *_ = _IDS
        answered = result(RESULT, call_id) | {"name": FUNCTION}
        messages = [QUESTION, calling([arguments], [call_id]), answered]
        try:
            template.render({"messages": messages, "tools": [WEATHER], "add_generation_prompt": True})
        except Exception as error:  # a template may raise anything
            why = why or f"{type(error).__name__}: {error}"
        else:
            return ""
    return why
