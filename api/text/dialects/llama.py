"""Llama 3.1 and later."""

from api.text.dialects.dialect import MAX_CALLS, Dialect, object_rules
from api.text.dialects.lark import TokenId
from api.text.dialects.parser import NAME, CallSyntax
from api.text.dialects.tools import ToolUse


class Llama(Dialect):
    """A call is a bare JSON object at the start of the answer."""

    name = "llama"
    markers = frozenset({"<|python_tag|>"})

    def _syntax(self) -> CallSyntax:
        return CallSyntax(
            triggers=("<|python_tag|>",),
            header=("{", '"name"', ":", NAME, ",", '"parameters"', ":"),
            footer=("}",),
            separator=";",
            bare=True,
        )

    def grammar(self, use: ToolUse | None, *, content: str | None, token_id: TokenId, prompt_tail: str = "") -> str:
        """Text that starts like a call must be a call."""
        if use is not None and use.choice == "auto" and content is None:
            content = r"/([^{ \n](.|\n)*)?/"
        return super().grammar(use, content=content, token_id=token_id, prompt_tail=prompt_tail)

    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        more = f'("; " object){{0,{MAX_CALLS - 1}}}' if use.parallel else ""
        tag = token_id("<|python_tag|>")
        begin = "" if tag is None else f"<[{tag}]>?"
        return f"calls: {begin} object {more}\n{object_rules(use, 'parameters')}"
