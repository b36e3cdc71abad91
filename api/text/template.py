"""Renders conversations to tokens by the model's chat template. Clients' text never becomes a control token."""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from itertools import chain, takewhile
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from jinja2 import nodes

from api.text.conventions import FIXED, find_conventions
from api.text.environment import ChatEnvironment, RaisedError, Unchangeable
from api.text.guard import Aside, Guard, TemplateRefusal
from api.text.tokenizer import ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template for models without one."""
TemplateOrigin = Literal["file", "model.yaml", "ChatML (built in)"]
BUILT_IN: Final = "ChatML (built in)"

_MARK: Final = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{2,}\]")
"""What most templates write between the texts of messages."""
_MARKS: Final = re.compile(rf"(?:\s*(?:{_MARK.pattern}))*")
_SYMBOLS: Final = re.compile(r"(?=\w*[^\w\s]\w*[^\w\s])\S+")
"""A word with two signs, such as MiniMax's end mark `[e~[`."""
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


class _NoVocabulary:
    """A vocabulary without tokens."""

    bos_id: None = None
    bos_token = eos_token = ""
    add_bos = False
    control_texts: tuple[str, ...] = ()

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:  # noqa: ARG002
        return []


NO_VOCABULARY: Final[TokenizerLike] = _NoVocabulary()
"""For templates whose text is needed, but no tokens."""


class ChatTemplate:
    """A model's chat template. Calls change no state, so threads may share it."""

    def __init__(self, source: str | None, tokenizer: TokenizerLike) -> None:
        """`source`: Jinja, as in the file's `tokenizer.chat_template`; None means ChatML.

        Raises ModelError if the source does not compile.
        """
        self._source = CHATML if source is None else source
        self._tokenizer = tokenizer
        environment = ChatEnvironment()
        try:
            tree = environment.parse(self._source)
            self._template = environment.from_string(tree)
        except Exception as error:  # Jinja's parser also raises Python's errors, such as RecursionError
            raise ModelError(f"the model's chat template does not compile: {error}") from error
        written = [*_constants(tree), *_ROLES, tokenizer.bos_token, tokenizer.eos_token]
        self._guard = Guard(tokenizer.control_texts, written)
        self._conventions = find_conventions(self._source, tree, self._run)
        mark = end_of_turn(self)
        self.end_marks = (mark,) if mark and mark not in tokenizer.control_texts else ()
        """Texts that end an answer, in addition to the vocabulary's tokens.

        A vocabulary may lack the template's end mark as a token: a model whose file has no template gets ChatML, and
        a `model.yaml` may set any template. Such a model writes the mark as text.
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
        messages = self._conventions.split(messages)
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
        """The text of the prompt, for messages without control tokens.

        Calls of one message are not divided among several, so this shows how the template itself writes them. Raises
        TemplateRefusal like `render_tokens`.
        """
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
        extra = {name: value for name, value in variables.items() if name not in FIXED}
        context = {str(name): aside.put(value) for name, value in (self._conventions.variables(tools) | extra).items()}
        context |= {
            "messages": Unchangeable(self._message(message, aside) for message in self._conventions.messages(messages)),
            "add_generation_prompt": end is PromptEnd.NEW_TURN,
        }
        if tools:
            context["tools"] = aside.put(tools)
        guarded_prefill = aside.put(prefill)
        prompt = self._run(context, aside.texts) + guarded_prefill
        if mark:
            prompt, found, _ = prompt.rpartition(mark)
            if not found:
                raise TemplateRefusal("it does not render the end of the final message, which cannot be continued")
        return prompt, aside.texts

    def _run(self, context: Mapping[str, Any], aside: Mapping[str, str] = MappingProxyType({})) -> str:
        """What the template makes of these variables. The texts `aside` are put back into the message of an error."""
        own = {"bos_token": self._tokenizer.bos_token, "eos_token": self._tokenizer.eos_token}
        try:
            return self._template.render({**context, **own})
        except Exception as error:  # a template is a program: it may raise anything
            reason = str(error).translate({ord(char): text for char, text in aside.items()})
            raise TemplateRefusal(
                reason if isinstance(error, RaisedError) else f"the model's chat template failed: {reason}"
            ) from error

    @staticmethod
    def _message(message: Mapping[str, Any], aside: Aside) -> dict[str, Any]:
        """A copy with guarded values. The template reads the keys, and the role is validated."""
        return {key: value if key == "role" else aside.put(value) for key, value in message.items()}


def end_of_turn(template: ChatTemplate) -> str:
    """The mark that ends an assistant's turn; empty if none is found. It may be the mark that begins the next turn."""
    roles = {"question": "user", "answer": "assistant", "remark": "user"}
    texts = [f"{name} of a conversation" for name in roles]
    messages = [{"role": role, "content": text} for role, text in zip(roles.values(), texts, strict=True)]
    try:
        going_on = template.text(messages, end=PromptEnd.MESSAGES)
    except TemplateRefusal:
        return ""
    between = going_on.rpartition(texts[2])[0].rpartition(texts[1])[2]
    try:
        last = template.text(messages[:2], end=PromptEnd.MESSAGES).rpartition(texts[1])[2]
    except TemplateRefusal:
        last = ""
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(between, last, strict=False)))
    openers = _MARKS.match(going_on)
    ends = [mark for mark in _MARK.findall(common) if openers is None or mark not in openers[0]]
    if ends:
        return str(ends[-1])
    final = _MARK.match(last.lstrip())
    if final and final[0] not in going_on:  # only the last turn ends with it, as with gpt-oss' <|return|>
        return final[0]
    other = _MARK.match(between.lstrip()) or _SYMBOLS.match(common.lstrip())
    return other[0] if other else ""


def template_origin(model_yaml: str | None, file: str | None) -> TemplateOrigin:
    """Where the template of a model comes from. The template of its model.yaml replaces the one of its file."""
    return "model.yaml" if model_yaml else BUILT_IN if file is None else "file"


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
