"""What all families have in common, and where they differ."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from api.text.dialects.lark import ANY_TEXT, TokenId, hint_rule, json_rule, literal, marker, text_until
from api.text.dialects.parser import END_THINK, THINK, AnswerParser, CallSyntax, call_id
from api.text.dialects.tools import Tool, ToolUse

MAX_CALLS: Final = 16
"""Calls of one answer that is made to call."""

Message = dict[str, Any]


class Dialect(ABC):
    """How a family writes tool calls and thoughts."""

    name: str
    markers: frozenset[str] = frozenset()
    """Control tokens that are part of what an answer says."""

    def __init__(self, template: str = "") -> None:
        self.thinks = END_THINK in template

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The conversation, and the `tools`, as the family's template wants them."""
        return [_with_objects(message) for message in messages], [tool.as_json() for tool in tools] or None

    @abstractmethod
    def _syntax(self) -> CallSyntax: ...

    @abstractmethod
    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        """The rules `calls` (one call or more) and `triggered`: the same behind any text."""

    def grammar(self, use: ToolUse | None, *, content: str | None, token_id: TokenId, prompt_tail: str = "") -> str:
        """What an answer must match, as a llguidance grammar; empty if it may be anything.

        `content` is the right-hand side of a rule for answers in words, None for any words. Before either, a model that
        thinks may do so.
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
        """For one answer; None if all of it is content."""
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
        """Whether the prompt has begun a thought already."""
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
    return "\n".join(f"arguments_{i}: {_argument_rule(tool)}" for i, tool in enumerate(use.tools))


def _argument_rule(tool: Tool) -> str:
    return json_rule(tool.schema()) if tool.strict else hint_rule(tool.schema())


def _with_objects(message: Message) -> Message:
    """Templates write the arguments of calls as JSON themselves."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        function["arguments"] = _parsed(function["arguments"])
        calls.append(call | {"function": function})
    return message | {"tool_calls": calls}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments  # what a model made up is shown to it as it is
