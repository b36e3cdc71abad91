"""Mistral."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from api.text.dialects.dialect import MAX_CALLS, Dialect, Message, argument_rules, object_rules
from api.text.dialects.lark import TokenId, literal, marker, text_until
from api.text.dialects.parser import NAME, CallSyntax, call_id
from api.text.dialects.tools import Tool, ToolUse


class Mistral(Dialect):
    """Calls are a list of JSON objects after a control token. Later models write a name and its arguments."""

    name = "mistral"
    markers = frozenset({"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})

    def __init__(self, template: str = "") -> None:
        super().__init__(template)
        self._named = "[ARGS]" in template
        self._numbered = "[CALL_ID]" in template

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Also replace call ids that do not have nine characters, each by the same id everywhere."""
        prepared, listed = super().prepare(messages, tools)
        return [_renumbered(message) for message in prepared], listed

    def make_id(self) -> str:
        return _nine(call_id())

    def _syntax(self) -> CallSyntax:
        if self._named:
            return CallSyntax(triggers=("[TOOL_CALLS]",), header=(NAME, "[ARGS]"), footer=(), id_mark="[CALL_ID]")
        return CallSyntax(
            triggers=("[TOOL_CALLS]",),
            opening=("[",),
            header=("{", '"name"', ":", NAME, ",", '"arguments"', ":"),
            footer=("}",),
            separator=",",
            closing="]",
        )

    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        begin = marker("[TOOL_CALLS]", token_id)
        if self._named:
            args = marker("[ARGS]", token_id)
            if self._numbered:
                args = f"({marker('[CALL_ID]', token_id)} /[a-zA-Z0-9]{{9}}/)? {args}"
            names = " | ".join(f"{literal(tool.name)} {args} arguments_{i}" for i, tool in enumerate(use.tools))
            rules = f"named: {names}\n{argument_rules(use)}"
            rest = "named"
            more = f"({begin} named){{0,{MAX_CALLS - 1}}}" if use.parallel else ""
        else:
            rules = object_rules(use, "arguments")
            several = f'(", " object){{0,{MAX_CALLS - 1}}}' if use.parallel else ""
            rest, more = f'"[" object {several} "]"', ""
        return (
            f"calls: {begin} {rest} {more}\n"
            f"{text_until('trigger', '[TOOL_CALLS]', token_id)}triggered: trigger {rest}\n{rules}"
        )


def _renumbered(message: Message) -> Message:
    if "tool_call_id" in message:
        return message | {"tool_call_id": _nine(message["tool_call_id"])}
    if "tool_calls" in message:
        return message | {"tool_calls": [call | {"id": _nine(call["id"])} for call in message["tool_calls"]]}
    return message


def _nine(text: str) -> str:
    """An id of nine letters and digits for a text: a hash, or the text itself if it already has this form."""
    if len(text) == 9 and text.isalnum():
        return text
    return blake2b(text.encode(), digest_size=5).hexdigest()[:9]
