"""Hermes, Qwen 2.5, Qwen 3 and others."""

from api.text.dialects.dialect import MAX_CALLS, Dialect, object_rules
from api.text.dialects.lark import TokenId, marker, text_until
from api.text.dialects.parser import NAME, CallSyntax
from api.text.dialects.tools import ToolUse


class Hermes(Dialect):
    """A call is a JSON object between tags."""

    name = "hermes"

    def _syntax(self) -> CallSyntax:
        return CallSyntax(
            triggers=("<tool_call>",),
            header=("{", '"name"', ":", NAME, ",", '"arguments"', ":"),
            footer=("}", "</tool_call>"),
        )

    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        begin, end = marker("<tool_call>", token_id), marker("</tool_call>", token_id)
        rest = f'"\\n" object "\\n" {end}'
        more = f'("\\n" {begin} {rest}){{0,{MAX_CALLS - 1}}}' if use.parallel else ""
        return (
            f"calls: {begin} {rest} {more}\n"
            f"{text_until('trigger', '<tool_call>', token_id)}"
            f"triggered: trigger {rest}\n"
            f"{object_rules(use, 'arguments')}"
        )
