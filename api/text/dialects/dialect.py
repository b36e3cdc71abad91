"""The base class of the dialects."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from pydantic_core import from_json

from api.text.dialects.lark import ANY_TEXT, TokenId, literal, marker, text_until
from api.text.dialects.parser import END_THINK, THINK, AnswerParser, CallSyntax, call_id
from api.text.dialects.tools import Tool, ToolUse

MAX_CALLS: Final = 16
"""Maximum number of calls in an answer that consists of calls."""

Message = dict[str, Any]


class Dialect(ABC):
    """The tool call and reasoning syntax of a model family."""

    name: str
    markers: frozenset[str] = frozenset()
    """Control tokens that are part of an answer's text."""

    def __init__(self, template: str = "") -> None:
        self.thinks = END_THINK in template

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The messages and the `tools` in the form that the family's template expects."""
        return [_with_objects(message) for message in messages], [tool.as_json() for tool in tools] or None

    @abstractmethod
    def _syntax(self) -> CallSyntax: ...

    @abstractmethod
    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        """The rules `calls` (one or more calls) and `triggered` (any text, then a call)."""

    def grammar(self, use: ToolUse | None, *, content: str | None, token_id: TokenId, prompt_tail: str = "") -> str:
        """The llguidance grammar that an answer must match; empty if any answer is valid.

        `content` is the right-hand side of a rule for text answers; None allows any text. A reasoning model may reason
        before its text or its calls.
        """
        if use is None and content is None:
            return ""
        rules = ["%llguidance {}"]
        words = "words"
        if use is None:
            body = words
        elif use.choice == "required":
            body, words = "calls", ""
        elif content is not None:
            body = f"{words} | calls"
        else:
            body = "triggered* words" if use.parallel else "words | triggered"
        rules.append(f"start: {self._thoughts(prompt_tail)} ({body})")
        if words:
            rules.append(f"words: {content or 'WORDS'}" + ("" if content else f"\nWORDS: {ANY_TEXT}"))
        if self.thinks:
            rules.append(self._thought_rules(token_id))
        if use is not None:
            rules.append(self._call_rules(use, token_id))
        return "\n".join(rules)

    def parser(self, use: ToolUse | None, prompt_tail: str = "") -> AnswerParser | None:
        """A parser for one answer; None if the whole answer is content."""
        if use is None and not self.thinks:
            return None
        return AnswerParser(
            self._syntax() if use else None,
            [tool.name for tool in use.tools] if use else (),
            thinks=self.thinks,
            is_thinking=self.is_thinking(prompt_tail),
            make_id=self.make_id,
        )

    def make_id(self) -> str:
        return call_id()

    def is_thinking(self, prompt_tail: str) -> bool:
        """Whether the prompt ends inside the model's reasoning."""
        return self.thinks and prompt_tail.rfind(THINK) > prompt_tail.rfind(END_THINK)

    def _thoughts(self, prompt_tail: str) -> str:
        if not self.thinks:
            return ""
        return "thoughts" if self.is_thinking(prompt_tail) else "(think thoughts)?"

    def _thought_rules(self, token_id: TokenId) -> str:
        space = r"/[ \n]*/"
        ended = text_until("thought", END_THINK, token_id)
        return f"think: {marker(THINK, token_id)}\n{ended}thoughts: thought {space}"


def object_rules(use: ToolUse, key: str) -> str:
    """The rule `object`: a call as a JSON object."""
    begins = [literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ') for tool in use.tools]
    end = literal("}")
    calls = " | ".join(f"{begin} arguments_{i} {end}" for i, begin in enumerate(begins))
    return f"object: {calls}\n{argument_rules(use)}"


def argument_rules(use: ToolUse) -> str:
    return "\n".join(f"arguments_{i}: {tool.rule()}" for i, tool in enumerate(use.tools))


def _with_objects(message: Message) -> Message:
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


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = from_json(arguments, allow_inf_nan=False, allow_partial=True)
        except ValueError:
            arguments = function["arguments"]
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return call | {"function": function | {"arguments": arguments}}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments  # invalid JSON of a model stays as it is
