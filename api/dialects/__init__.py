"""How model families write tool calls and thoughts: into prompts, as grammars, and out of answers."""

from api.dialects.dialect import Dialect, Generic, Hermes, Llama, Mistral, Tool, ToolUse, detect
from api.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged
from api.dialects.lark import json_rule
from api.dialects.parser import AnswerParser

__all__ = [
    "AnswerParser",
    "CallArguments",
    "CallBegin",
    "Content",
    "Dialect",
    "Event",
    "Generic",
    "Hermes",
    "Llama",
    "Mistral",
    "Reasoning",
    "Tool",
    "ToolUse",
    "detect",
    "json_rule",
    "merged",
]
