"""Renders conversations to tokens by the model's chat template. Clients' text never becomes a control token."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from itertools import chain
from typing import Any, Protocol

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from api.text.guard import Aside, Guard, TemplateRefusal
from api.text.tokenizer import ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template for models without one."""
CHATML_END = "<|im_end|>"

_ROLES = ("system", "developer", "user", "assistant", "tool")


class PromptEnd(Enum):
    """What a prompt ends with."""

    NEW_TURN = auto()
    """The beginning of the assistant's turn."""
    MESSAGES = auto()
    """The end of the last message."""
    OPEN_MESSAGE = auto()
    """The content of the last message, without its end."""


class TokenizerLike(Protocol):
    """The part of `api.text.tokenizer.Tokenizer` that a template needs."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def bos_token(self) -> str: ...
    @property
    def eos_token(self) -> str: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def control_texts(self) -> tuple[str, ...]: ...
    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]: ...


class ChatTemplate:
    """A model's chat template. Calls change no state, so threads may share it."""

    def __init__(self, source: str | None, tokenizer: TokenizerLike) -> None:
        """`source`: Jinja, as in the file's `tokenizer.chat_template`; None means ChatML.

        Raises ModelError if the source does not compile.
        """
        self._source = CHATML if source is None else source
        self._tokenizer = tokenizer
        environment = _environment()
        try:
            self._template = environment.from_string(self._source)
            written = list(_constants(environment.parse(self._source)))
        except Exception as error:  # Jinja's parser also raises Python's errors, such as RecursionError
            raise ModelError(f"the model's chat template does not compile: {error}") from error
        self._knows_developer = "developer" in self._source
        written += [*_ROLES, tokenizer.bos_token, tokenizer.eos_token]
        self._guard = Guard(tokenizer.control_texts, written)
        self._knows_system = self._has_system_role()
        self.end_marks = (CHATML_END,) if source is None else ()
        """Texts that end an answer.

        A model whose file has no template often has no token for ChatML's end mark, so it writes the mark as text.
        """

    def render_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefill: str = "",
        end: PromptEnd = PromptEnd.NEW_TURN,
    ) -> list[int]:
        """The tokens of the prompt for these messages, which ends as `end` says, or after the answer's `prefill`.

        The role of a message must be validated. Its other values, the tools and the `variables` are the client's
        JSON-like data. Templates may ignore variables. Tokenizing takes about 0.3 s per million characters, so large
        conversations need a thread. Raises TemplateRefusal if the template cannot render the conversation.
        """
        prompt, aside = self._render(messages, tools, variables or {}, prefill, end)
        encode = self._tokenizer.encode
        if aside:
            parts = re.split(f"([{''.join(aside)}])", prompt)
            spelled = {char: encode(text, parse_special=False, continues=True) for char, text in aside.items()}
            tokens = encode(parts[0], parse_special=True)
            for char, text in zip(parts[1::2], parts[2::2], strict=True):
                tokens += spelled[char]
                tokens += encode(text, parse_special=True, continues=True)
        else:
            tokens = encode(prompt, parse_special=True)
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    @property
    def source(self) -> str:
        """Jinja."""
        return self._source

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        end: PromptEnd = PromptEnd.NEW_TURN,
    ) -> str:
        """The text of the prompt, for messages without control tokens. Raises TemplateRefusal like `render_tokens`."""
        return self._render(messages, tools, variables or {}, "", end)[0]

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        prefill: str = "",
        end: PromptEnd = PromptEnd.NEW_TURN,
    ) -> tuple[str, dict[str, str]]:
        """The rendered text with private-use characters for replaced texts, and the replaced texts by character."""
        aside = Aside(self._guard, lambda: [self._source, *strings([messages, tools, variables, prefill])])
        mark = ""
        if end is PromptEnd.OPEN_MESSAGE:  # the prompt is cut at a mark, because templates differ in what they trim
            mark = aside.unused()
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + mark}]
        context = {"documents": None} | {str(name): aside.put(value) for name, value in variables.items()}
        context |= {
            "messages": [
                self._message(message, aside)
                for message in (messages if self._knows_system else _with_system_as_user(messages))
            ],
            "tools": aside.put(tools) if tools else None,
            "add_generation_prompt": end is PromptEnd.NEW_TURN,
            "bos_token": self._tokenizer.bos_token,
            "eos_token": self._tokenizer.eos_token,
        }
        guarded_prefill = aside.put(prefill)
        try:
            prompt = self._template.render(context) + guarded_prefill
        except Exception as error:  # a template is a program: it may raise anything
            reason = str(error).translate({ord(char): text for char, text in aside.texts.items()})
            raise TemplateRefusal(
                reason if isinstance(error, _RaisedError) else f"the model's chat template failed: {reason}"
            ) from error
        if mark:
            prompt, found, _ = prompt.rpartition(mark)
            if not found:
                raise TemplateRefusal("it does not render the end of the final message, which cannot be continued")
        return prompt, aside.texts

    def _has_system_role(self) -> bool:
        """Whether the template accepts system messages and renders their content. Gemma's templates do not."""
        self._knows_system = True
        question = {"role": "user", "content": "a question"}
        try:
            self._render([question], None, {})
        except TemplateRefusal:
            return True  # it failed for another reason
        try:
            prompt, _ = self._render([{"role": "system", "content": "a rule"}, question], None, {})
        except TemplateRefusal:
            return False
        return "a rule" in prompt

    def _message(self, message: Mapping[str, Any], aside: "Aside") -> dict[str, Any]:
        role = message["role"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        return {"role": role} | {key: aside.put(value) for key, value in message.items() if key != "role"}


def _with_system_as_user(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Move system messages into the next user message, or into a user message of their own."""
    moved: list[Mapping[str, Any]] = []
    rules: list[str] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            rules.append(message["content"])
            continue
        if rules and message["role"] == "user":
            moved.append({**message, "content": "\n\n".join([*rules, message["content"]])})
        else:
            moved += [*_as_user(rules), message]
        rules = []
    return moved + _as_user(rules)


def _as_user(rules: list[str]) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": "\n\n".join(rules)}] if rules else []


class _RaisedError(TemplateError):
    """The error of a template's raise_exception."""


class _GenerationTag(Extension):
    """Hugging Face's `{% generation %}`, which marks text to train on. Only its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of Hugging Face's transformers. Nothing is escaped, because prompts are not HTML."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise _RaisedError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may use
    return datetime.now().astimezone().strftime(format)


def _constants(template: nodes.Template) -> Iterator[str]:
    for node in template.find_all((nodes.Const, nodes.TemplateData)):
        value = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        if isinstance(value, str):
            yield value


def strings(value: Any) -> Iterator[str]:
    """All texts in JSON-like data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from map(str, value)
        yield from chain.from_iterable(map(strings, value.values()))
    elif isinstance(value, Sequence):
        yield from chain.from_iterable(map(strings, value))
