"""The tool call and reasoning syntax of model families: in prompts, in grammars and in answers."""

from api.text.dialects.detect import detect
from api.text.dialects.dialect import Dialect, with_object_arguments
from api.text.dialects.events import CallArguments, CallBegin, Content, Event, Reasoning, merged
from api.text.dialects.generic import Generic
from api.text.dialects.hermes import Hermes
from api.text.dialects.lark import one_of
from api.text.dialects.llama import Llama
from api.text.dialects.mistral import Mistral
from api.text.dialects.parser import AnswerParser
from api.text.dialects.tools import Tool, ToolUse

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
    "merged",
    "one_of",
    "with_object_arguments",
]
