"""Renders the conversations that are compared with each other. Their texts are words that no template writes."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, meta

from api.text.guard import TemplateRefusal
from api.text.template import ChatTemplate, PromptEnd

PROBE: Final = "zq"
"""What all texts of these conversations begin with."""
USER: Final = "zquser"
NEXT: Final = "zqnext"
CONTENT: Final = "zqcontent"
REASON: Final = "zqreason"
RESULT: Final = "zqresult"
NAMES: Final = ("zqplum", "zqpear")
IDS: Final = ("zqidaaaa1", "zqidbbbb2", "zqidcccc3")
"""Nine letters and digits, which is the only form that Mistral's templates accept."""
KEYS: Final = ("zqkeya", "zqkeyb")
VALUES: Final = ("zqvala", "zqvalb", "zqvalc", "zqvald")

Message = dict[str, Any]
Call = tuple[str, Mapping[str, Any]]
"""The name and the arguments of a call."""

QUESTION: Final[Message] = {"role": "user", "content": USER}
_GIVEN: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "raise_exception"}
    | {"strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner"}
)
_MAX_VARIABLES: Final = 24
_TRAINING_TAG: Final = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


def _tool(name: str) -> Mapping[str, Any]:
    properties = {key: {"type": "string", "description": "zqabout"} for key in KEYS}
    parameters = {"type": "object", "properties": properties, "required": list(KEYS)}
    return {"type": "function", "function": {"name": name, "description": "zqabout", "parameters": parameters}}


TOOLS: Final = [_tool(name) for name in NAMES]
TWO_ARGUMENTS: Final[tuple[Call, Call]] = (
    (NAMES[0], {KEYS[0]: VALUES[0], KEYS[1]: VALUES[1]}),
    (NAMES[1], {KEYS[0]: VALUES[2], KEYS[1]: VALUES[3]}),
)


class Renders:
    """What a template makes of conversations. A refusal is None. Each conversation is rendered once."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._done: dict[str, str | None] = {}

    @property
    def source(self) -> str:
        """The template, in Jinja."""
        return self._template.source

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: bool = False,
        variables: Mapping[str, Any] | None = None,
        end: PromptEnd = PromptEnd.MESSAGES,
    ) -> str | None:
        key = json.dumps([messages, tools, variables, end.name])
        if key not in self._done:
            try:
                self._done[key] = self._template.text(messages, TOOLS if tools else None, variables, end)
            except TemplateRefusal:
                self._done[key] = None
        return self._done[key]

    def generation(self, variables: Mapping[str, Any] | None = None, *, tools: bool = False) -> str | None:
        """The text behind the question if the assistant's turn follows."""
        return behind_question(self.text([QUESTION], tools=tools, variables=variables, end=PromptEnd.NEW_TURN))

    def turn(
        self,
        message: Message,
        following: Sequence[Message] = (),
        *,
        tools: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str | None:
        """The text behind the question if this message of the assistant follows."""
        return behind_question(self.text([QUESTION, message, *following], tools=tools, variables=variables))

    def variables(self) -> list[str]:
        """The variables that a request can give to the template."""
        source = _TRAINING_TAG.sub("", self.source)
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(source)
            names = meta.find_undeclared_variables(tree)
        except Exception:  # another tag; Jinja's parser also raises Python's errors
            return []
        return sorted(names - _GIVEN, key=lambda name: ("think" not in name, name))[:_MAX_VARIABLES]


def behind_question(text: str | None) -> str | None:
    return None if text is None or USER not in text else text.rpartition(USER)[2]


def assistant(content: str | None, **members: Any) -> Message:
    return {"role": "assistant", "content": content, **members}


def with_calls(calls: Sequence[Call], content: str | None, *, as_text: bool) -> Message:
    """A message of the assistant with calls, their arguments as JSON text or as an object."""
    return assistant(
        content,
        tool_calls=[
            {
                "id": IDS[i],
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments) if as_text else dict(arguments)},
            }
            for i, (name, arguments) in enumerate(calls)
        ],
    )


def results(calls: Sequence[Call]) -> list[Message]:
    return [
        {"role": "tool", "tool_call_id": IDS[i], "name": name, "content": RESULT} for i, (name, _) in enumerate(calls)
    ]
