"""How model families write tool calls and thoughts: into prompts, as grammars, and out of answers."""

from api.dialects.detect import detect
from api.dialects.dialect import Dialect
from api.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged
from api.dialects.generic import Generic
from api.dialects.hermes import Hermes
from api.dialects.lark import json_rule, problem
from api.dialects.llama import Llama
from api.dialects.mistral import Mistral
from api.dialects.parser import AnswerParser
from api.dialects.tools import Tool, ToolUse

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
    "problem",
]
