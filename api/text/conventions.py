"""What a chat template expects of a conversation beyond OpenAI's form, found out by rendering small conversations."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from itertools import combinations
from typing import Any, Final

from jinja2 import meta, nodes

from api.text.environment import Unchangeable
from api.text.guard import Pieces, TemplateRefusal, joined

Message = Mapping[str, Any]
Render = Callable[[Mapping[str, Any]], str]
"""Renders a template with variables. Raises TemplateRefusal."""

FIXED: Final = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""The variables that a client cannot set."""
_OPENAI_NAME: Final = "reasoning_content"
"""The name of thoughts in requests, which most templates read, too."""
_OPTIONAL: Final = ("tools", "documents")
_THOUGHT_WORD: Final = re.compile(r"(reasoning|thinking|think|thoughts?)(_\w+)?")
_QUESTION: Final = {"role": "user", "content": "a question"}
_RESULT: Final = {"role": "tool", "tool_call_id": "c00000000", "content": "a result"}
_UNKNOWN_ROLE: Final = "librarian"
_THOUGHTS: Final = "these thoughts"
_IN_PROSE: Final = re.compile(f"(?<!['\"]){_THOUGHTS}(?!['\"])")
"""The thoughts, but not as a string in the text of a whole list or object."""


class ThoughtsAs(Enum):
    """Where a template reads the thoughts of an assistant's message."""

    FIELD = auto()
    """In a field of the message."""
    PART = auto()
    """In a part of the content, which is a list of parts."""
    BLOCK = auto()
    """In a block of the content, which is an object with a list of blocks."""


class FunctionsAs(Enum):
    """How a template reads the variable `functions`, which holds the tools for templates that know no `tools`."""

    LIST = auto()
    TEXT = auto()
    """As JSON text."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What a template expects of a conversation."""

    has_system: bool = True
    """Whether it accepts system messages and renders their content. Gemma's templates do not."""
    has_developer: bool = True
    """Whether it knows the role: it renders its content, and not just as that of any role."""
    nulls: tuple[str, ...] = ()
    """Variables that are null if they have no value, because the template compares them with it, or refuses a question
    if they are undefined. Others are undefined, because more templates ask whether a variable is defined, or go through
    an undefined one as an empty list."""
    functions: FunctionsAs | None = None
    """None if it does not read the variable `functions`."""
    has_date: bool = False
    """Whether it reads the variable `datetime`."""
    thoughts_name: str = _OPENAI_NAME
    """The name of the field, or the type of the part or block."""
    thoughts_as: ThoughtsAs = ThoughtsAs.FIELD
    thoughts_exclude_text: bool = False
    """Whether it refuses a message that has thoughts, text and calls. The text then becomes a part of the thoughts."""
    null_content: bool = False
    """Whether it overlooks the calls of a message without text, unless the content is null."""
    single_calls: bool = False
    """Whether it refuses a message with several calls, or overlooks all but the first."""

    def variables(self, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """The variables that the template may need, besides those that every template gets."""
        given: dict[str, Any] = dict.fromkeys(self.nulls)
        if self.has_date:
            given["datetime"] = datetime.now().astimezone().strftime("%b %d %Y")
        functions = [tool.get("function", tool) for tool in tools or ()]
        if self.functions is FunctionsAs.TEXT:
            given["functions"] = json.dumps(functions, ensure_ascii=False, indent=4)
        elif self.functions is FunctionsAs.LIST and functions:
            given["functions"] = functions
        return given

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as the template expects it."""
        if not self.has_system:
            messages = _with_system_as_user(messages)
        if not self.has_developer:
            messages = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
        if self.thoughts_name == _OPENAI_NAME and not self.thoughts_exclude_text and not self.null_content:
            return list(messages)
        has_blocks = self.thoughts_as is ThoughtsAs.BLOCK and any(_OPENAI_NAME in each for each in messages)
        return [self._answer(each, has_blocks) if each["role"] == "assistant" else each for each in messages]

    def split(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation with a message for each call, if the template needs that. Results follow their calls."""
        if not self.single_calls:
            return messages
        split: list[Message] = []
        following = iter(messages)
        message = next(following, None)
        while message is not None:
            results: list[Message] = []
            after = next(following, None)
            several = len(message.get("tool_calls") or ()) > 1
            if several:
                while after is not None and after["role"] == "tool":
                    results.append(after)
                    after = next(following, None)
            split += _one_by_one(message, results) if several else [message]
            message = after
        return split

    def _answer(self, message: Message, has_blocks: bool) -> Message:
        if has_blocks or _OPENAI_NAME in message:
            message = self._with_thoughts(message)
        if self.null_content and "tool_calls" in message and message["content"] == "":
            return {**message, "content": None}
        return message

    def _with_thoughts(self, message: Message) -> Message:
        thoughts, text = message.get(_OPENAI_NAME), message.get("content")
        rest = {key: value for key, value in message.items() if key != _OPENAI_NAME}
        if thoughts and text and "tool_calls" in message and self.thoughts_exclude_text:
            thoughts, rest["content"] = f"{thoughts}\n\n{text}", ""
        if self.thoughts_as is ThoughtsAs.FIELD:
            return rest | {self.thoughts_name: thoughts}
        name = self.thoughts_name
        if self.thoughts_as is ThoughtsAs.PART:
            parts = [{"type": name, name: thoughts}] if thoughts else []
            return rest | {"content": [*parts, {"type": "text", "text": text}] if text else parts or ""}
        blocks = [{"type": name, "text": thoughts}] if thoughts else []
        return rest | {"content": {"blocks": [*blocks, {"type": "response", "text": text}] if text else blocks}}


def find_conventions(source: str, tree: nodes.Template, render: Render) -> Conventions:
    """What a template expects. `tree`: the source, parsed."""
    names = meta.find_undeclared_variables(tree)
    words = set(_words(tree))
    found = Conventions(has_developer="developer" in source, has_date="datetime" in names)
    found = _with_nulls(tree, render, found, [name for name in _OPTIONAL if name in names])
    if "functions" in names and "tools" not in names:
        as_list = _rendered(render, found, [_QUESTION], functions=[{"name": "a_tool"}])
        found = replace(found, functions=FunctionsAs.TEXT if as_list is None else FunctionsAs.LIST)
    if _rendered(render, found, [_QUESTION]) is not None:  # otherwise it fails for another reason
        text = _rendered(render, found, [{"role": "system", "content": "a rule"}, _QUESTION])
        has_developer = found.has_developer and _knows_developer(render, found)
        found = replace(found, has_system="a rule" in (text or ""), has_developer=has_developer)
    if _OPENAI_NAME not in words:
        found = _with_thoughts(render, found, sorted(words), names)
    return _with_calls(render, found) if "tool_calls" in words else found


def _rendered(render: Render, found: Conventions, messages: Sequence[Message], **variables: Any) -> str | None:
    """The text; None if the template refuses the conversation."""
    is_question = messages[-1]["role"] != "assistant"
    context = found.variables(None) | variables
    context |= {"messages": Unchangeable(deepcopy(found.messages(messages))), "add_generation_prompt": is_question}
    try:
        return render(context)
    except TemplateRefusal:
        return None


def _knows_developer(render: Render, found: Conventions) -> bool:
    """Whether it renders the role `developer`, and otherwise than a role that no template knows."""
    own, other = (
        _rendered(render, found, [{"role": role, "content": "a rule"}, _QUESTION])
        for role in ("developer", _UNKNOWN_ROLE)
    )
    return own is not None and "a rule" in own and own != (other or "").replace(_UNKNOWN_ROLE, "developer")


def _with_nulls(tree: nodes.Template, render: Render, found: Conventions, names: Sequence[str]) -> Conventions:
    """The conventions with the null variables: those the template compares with null, unless it then refuses."""
    asked = {name for name in names if _compares_with_null(tree, name)}
    choices = [{*chosen} for count in range(len(names) + 1) for chosen in combinations(names, count)]
    tried = [
        replace(found, nulls=tuple(name for name in names if name in choice))
        for choice in sorted(choices, key=lambda choice: len(choice ^ asked))
    ]
    return next((each for each in tried if _rendered(render, each, [_QUESTION]) is not None), tried[0])


def _with_thoughts(render: Render, found: Conventions, words: Sequence[str], names: Collection[str]) -> Conventions:
    """The conventions with the place where a template without `reasoning_content` reads thoughts, if there is one."""
    answer: Message = {"role": "assistant", "content": "an answer", _OPENAI_NAME: _THOUGHTS}
    call: Message = {"role": "assistant", "content": "", _OPENAI_NAME: _THOUGHTS, "tool_calls": [_call({})]}
    switched_on = {name: True for name in names if _THOUGHT_WORD.search(name)}
    for messages in ([_QUESTION, answer], [_QUESTION, call, _RESULT]):  # some write thoughts only beside calls
        for variables in ({}, switched_on) if switched_on else ({},):
            for name in filter(_THOUGHT_WORD.fullmatch, words):
                for place in ThoughtsAs:
                    tried = replace(found, thoughts_name=name, thoughts_as=place)
                    if _IN_PROSE.search(_rendered(render, tried, messages, **variables) or ""):
                        return tried
    return found


def _with_calls(render: Render, found: Conventions) -> Conventions:
    """The conventions with what the template expects of messages with calls."""
    found = replace(found, thoughts_exclude_text=_excludes_text(render, found))
    if not _renders_calls(render, found):
        found = replace(found, null_content=_renders_calls(render, replace(found, null_content=True)))
        if not found.null_content:
            return found
    return replace(found, single_calls=not _renders_calls(render, found, ("a_tool", "b_tool")))


def _excludes_text(render: Render, found: Conventions) -> bool:
    message = {"role": "assistant", "content": "an answer", _OPENAI_NAME: _THOUGHTS, "tool_calls": [_call({})]}
    if _rendered(render, found, [_QUESTION, message, _RESULT]) is not None:
        return False
    return _rendered(render, found, [_QUESTION, {**message, "content": ""}, _RESULT]) is not None


def _renders_calls(render: Render, found: Conventions, names: Sequence[str] = ("a_tool",)) -> bool:
    """Whether it renders the calls of a message without text."""
    results = [{**_RESULT, "tool_call_id": f"c0000000{i}"} for i, _ in enumerate(names)]
    forms: tuple[object, ...] = ({}, "{}")
    for arguments in forms:  # some templates need an object, others text
        calls = [_call(arguments, name, i) for i, name in enumerate(names)]
        text = _rendered(
            render, found, [_QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
        )
        if text is not None and all(name in text for name in names):
            return True
    return False


def _call(arguments: object, name: str = "a_tool", number: int = 0) -> Message:
    return {"id": f"c0000000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _words(tree: nodes.Template) -> Iterator[str]:
    """The names of attributes and the texts of constants."""
    for node in tree.find_all((nodes.Getattr, nodes.Const)):
        word = node.attr if isinstance(node, nodes.Getattr) else getattr(node, "value", None)
        if isinstance(word, str):
            yield word


def _compares_with_null(tree: nodes.Template, name: str) -> bool:
    """Whether a template asks if a variable is null, and never if it is defined."""
    asked = {test.name for test in tree.find_all(nodes.Test) if _is_name(test.node, name)}
    for compare in tree.find_all(nodes.Compare):
        sides = [compare.expr, *(operand.expr for operand in compare.ops if operand.op in ("eq", "ne"))]
        if any(_is_name(side, name) for side in sides) and any(_is_null(side) for side in sides):
            asked.add("none")
    return "none" in asked and asked.isdisjoint({"defined", "undefined"})


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_null(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and node.value is None


def _one_by_one(message: Message, results: Sequence[Message]) -> list[Message]:
    """A message for each call of a message, followed by its results. Results without a call come last."""
    split: list[Message] = []
    left = list(results)
    for call in message["tool_calls"]:
        first = message if not split else {"role": message["role"], "content": ""}
        own = [result for result in left if result.get("tool_call_id") == call["id"]]
        left = [result for result in left if result not in own]
        split += [{**first, "tool_calls": [call]}, *own]
    return split + left


def _with_system_as_user(messages: Sequence[Message]) -> list[Message]:
    """Move system messages into the next user message, or into a user message of their own."""
    moved: list[Message] = []
    rules: list[str | Pieces] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            rules.append(message["content"])
            continue
        if rules and message["role"] == "user":
            moved.append({**message, "content": joined("\n\n", [*rules, message["content"]])})
        else:
            moved += [*_as_user(rules), message]
        rules = []
    return moved + _as_user(rules)


def _as_user(rules: list[str | Pieces]) -> list[Message]:
    return [{"role": "user", "content": joined("\n\n", rules)}] if rules else []
