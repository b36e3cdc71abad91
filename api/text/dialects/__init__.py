"""The tool call and reasoning syntax of model families: in prompts, in grammars and in answers."""

from api.text.dialects.dialect import Dialect, dialect_of
from api.text.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged
from api.text.dialects.grammars.lark import one_of
from api.text.dialects.history import with_object_arguments
from api.text.dialects.parsing.parser import AnswerParser
from api.text.dialects.probing import describe
from api.text.dialects.tools import Tool, ToolUse

__all__ = [
    "AnswerParser",
    "CallArguments",
    "CallBegin",
    "Content",
    "Dialect",
    "Event",
    "Reasoning",
    "Tool",
    "ToolUse",
    "describe",
    "dialect_of",
    "merged",
    "one_of",
    "with_object_arguments",
]
