"""Stand-in until probing is merged."""

from api.text.dialects.common import HERMES, THINK
from api.text.dialects.syntax import AnswerSyntax, Learned
from api.text.template import ChatTemplate


def learn(template: ChatTemplate) -> Learned:
    source = template.source
    thoughts = THINK if "</think>" in source else None
    calls = HERMES if "<tool_call>" in source and "tools" in source else None
    return Learned(
        AnswerSyntax(thoughts, calls=calls),
        lists_tools="tools" in source,
        renders_calls="tool_calls" in source,
        renders_results=True,
    )
