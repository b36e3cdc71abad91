"""The families, and how to tell which one a model is of."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from api.dialects.lark import ANY_TEXT, TokenId, json_rule, literal, marker, text_until
from api.dialects.parser import END_THINK, NAME, THINK, AnswerParser, CallSyntax, call_id

MAX_CALLS: Final = 16
"""Calls of one answer that is made to call."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a request offers."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """A JSON schema; empty for no parameters."""
    strict: bool = False

    def as_json(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name, "description": self.description or ""}
        return {"type": "function", "function": function | {"parameters": self.schema()}}

    def schema(self) -> dict[str, Any]:
        return dict(self.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may call, or must."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"]
    parallel: bool = True
    """Whether several calls may be made."""


class Dialect(ABC):
    """How a family writes tool calls and thoughts."""

    name: str
    markers: frozenset[str] = frozenset()
    """Control tokens that are part of what an answer says."""

    def __init__(self, template: str = "") -> None:
        self.thinks = END_THINK in template

    @abstractmethod
    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The conversation, and the `tools`, as the family's template wants them."""

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
            is_thinking=self._is_thinking(prompt_tail),
            make_id=self.make_id,
        )

    def make_id(self) -> str:
        return call_id()

    def _is_thinking(self, prompt_tail: str) -> bool:
        """Whether the prompt has begun a thought already."""
        return self.thinks and prompt_tail.rfind(THINK) > prompt_tail.rfind(END_THINK)

    def _thoughts(self, prompt_tail: str) -> str:
        if not self.thinks:
            return ""
        return "thoughts" if self._is_thinking(prompt_tail) else "(think thoughts)?"

    def _thought_rules(self, token_id: TokenId) -> str:
        space = r"/[ \n]*/"
        ended = text_until("thought", END_THINK, token_id)
        return f"think: {marker(THINK, token_id)}\n{ended}thoughts: thought {space}"


class Hermes(Dialect):
    """Hermes, Qwen 2.5, Qwen 3 and others: a JSON object between tags."""

    name = "hermes"

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        return [_with_objects(message) for message in messages], [tool.as_json() for tool in tools] or None

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
            f"{_objects(use, 'arguments')}"
        )


class Generic(Hermes):
    """A model that was not taught to call tools: it is told how, in words, and calls look like Hermes'."""

    name = "generic"

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Tools are listed in the system message; calls and their results become words of roles that every model knows.

        Messages of one role in a row are joined, as some templates want the roles to alternate.
        """
        if not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
            return list(messages), None
        said = [_in_words(message) for message in messages]
        if tools:
            system = said.pop(0)["content"] if said and said[0]["role"] in ("system", "developer") else ""
            said.insert(0, {"role": "system", "content": f"{system}\n\n{_manual(tools)}".lstrip()})
        joined: list[Message] = []
        for message in said:
            if joined and joined[-1]["role"] == message["role"]:
                message = message | {"content": f"{joined.pop()['content']}\n{message['content']}"}
            joined.append(message)
        return joined, None


class Llama(Dialect):
    """Llama 3.1 and later: a bare JSON object that begins the answer."""

    name = "llama"
    markers = frozenset({"<|python_tag|>"})

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        return [_with_objects(message) for message in messages], [tool.as_json() for tool in tools] or None

    def _syntax(self) -> CallSyntax:
        return CallSyntax(
            triggers=("<|python_tag|>",),
            header=("{", '"name"', ":", NAME, ",", '"parameters"', ":"),
            footer=("}",),
            separator=";",
            bare=True,
        )

    def grammar(self, use: ToolUse | None, *, content: str | None, token_id: TokenId, prompt_tail: str = "") -> str:
        """Words that begin like a call are one."""
        if use is not None and use.choice == "auto" and content is None:
            content = r"/([^{ \n](.|\n)*)?/"
        return super().grammar(use, content=content, token_id=token_id, prompt_tail=prompt_tail)

    def _call_rules(self, use: ToolUse, token_id: TokenId) -> str:
        more = f'("; " object){{0,{MAX_CALLS - 1}}}' if use.parallel else ""
        tag = token_id("<|python_tag|>")
        begin = "" if tag is None else f"<[{tag}]>?"
        return f"calls: {begin} object {more}\n{_objects(use, 'parameters')}"


class Mistral(Dialect):
    """Mistral: a list of JSON objects behind a control token; later models a name and its arguments."""

    name = "mistral"
    markers = frozenset({"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})

    def __init__(self, template: str = "") -> None:
        super().__init__(template)
        self._named = "[ARGS]" in template
        self._numbered = "[CALL_ID]" in template

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Ids have nine characters: others are replaced, each by the same one everywhere."""
        prepared = []
        for message in messages:
            changed = _with_objects(message)
            if "tool_call_id" in changed:
                changed["tool_call_id"] = _nine(changed["tool_call_id"])
            if "tool_calls" in changed:
                changed["tool_calls"] = [call | {"id": _nine(call["id"])} for call in changed["tool_calls"]]
            prepared.append(changed)
        return prepared, [tool.as_json() for tool in tools] or None

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
            rules = f"named: {names}\n{_schemas(use)}"
            rest = "named"
            more = f"({begin} named){{0,{MAX_CALLS - 1}}}" if use.parallel else ""
        else:
            rules = _objects(use, "arguments")
            several = f'(", " object){{0,{MAX_CALLS - 1}}}' if use.parallel else ""
            rest, more = f'"[" object {several} "]"', ""
        return (
            f"calls: {begin} {rest} {more}\n"
            f"{text_until('trigger', '[TOOL_CALLS]', token_id)}triggered: trigger {rest}\n{rules}"
        )


def detect(template: str | None) -> Dialect:
    """The dialect of a model by what its chat template contains; Generic for one that knows no tools."""
    source = template or ""
    if "tools" in source:
        if "[TOOL_CALLS]" in source:
            return Mistral(source)
        if "<tool_call>" in source and "<function=" not in source:  # which is Qwen 3 Coder's way, in XML
            return Hermes(source)
        if "ipython" in source:
            return Llama(source)
    return Generic(source)


def _objects(use: ToolUse, key: str) -> str:
    """The rule `object`: a call as a JSON object."""
    begins = [literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ') for tool in use.tools]
    end = literal("}")
    calls = " | ".join(f"{begin} arguments_{i} {end}" for i, begin in enumerate(begins))
    return f"object: {calls}\n{_schemas(use)}"


def _schemas(use: ToolUse) -> str:
    return "\n".join(f"arguments_{i}: {json_rule(tool.schema())}" for i, tool in enumerate(use.tools))


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


def _in_words(message: Message) -> Message:
    content = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}'
        "\n</tool_call>"
        for call in message["tool_calls"]
    ]
    return {"role": message["role"], "content": "\n".join([content, *calls] if content else calls)}


def _manual(tools: Sequence[Tool]) -> str:
    listed = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\n"
        "To call one, answer with its name and arguments as JSON between tags:\n"
        '<tool_call>\n{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>\n'
        "What it returns comes back between <tool_response> tags."
    )


def _nine(text: str) -> str:
    """Nine letters and digits that stand for the text, which may be so already."""
    if len(text) == 9 and text.isalnum():
        return text
    return blake2b(text.encode(), digest_size=5).hexdigest()[:9]
