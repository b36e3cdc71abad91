"""Conversations to tokens, by the model's own chat template; what a client writes never becomes a control token."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Protocol

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from api.text.literals import literals
from api.text.tokenizer import ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For a model that brings no template."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PRIVATE_RANGES = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")

Span = tuple[int, int]


class TemplateRefusal(ValueError):  # noqa: N818 - it says who is to blame
    """The model's template cannot render this conversation, and what it says about it."""


class TokenizerLike(Protocol):
    """What a template needs of `api.text.tokenizer.Tokenizer`."""

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
    """A model's chat template. It keeps nothing of a call, so threads may share it."""

    def __init__(self, source: str | None, tokenizer: TokenizerLike) -> None:
        """`source`: Jinja, as in the file's `tokenizer.chat_template`; None stands for ChatML.

        Raises ModelError for a source that does not compile.
        """
        self._source = CHATML if source is None else source
        self._tokenizer = tokenizer
        environment = _environment()
        try:
            self._template = environment.from_string(self._source)
            written = list(_constants(environment.parse(self._source)))
        except Exception as error:  # Jinja's parser lets Python's own errors through, RecursionError for one
            raise ModelError(f"the model's chat template does not compile: {error}") from error
        self._knows_developer = "developer" in self._source
        written += [*_ROLES, tokenizer.bos_token, tokenizer.eos_token]
        self._guard = _Guard(tokenizer.control_texts, written)
        self._knows_system = self._tells_system()

    def render_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefill: str = "",
    ) -> list[int]:
        """The prompt for these messages, up to where the assistant's answer begins, or goes on behind the `prefill`.

        A message has a `role` that was validated; its other values, the tools and the `variables`, which the template
        may read or not, are the client's: text, numbers, lists and objects, as in JSON. Tokenizing takes about 0.3 s
        per million characters: large conversations belong into a thread. Raises TemplateRefusal.
        """
        prompt, aside = self._render(messages, tools, variables or {}, prefill)
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

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        prefill: str = "",
    ) -> tuple[str, dict[str, str]]:
        """The rendering, with a private-use character for each text put aside, and what these stand for."""
        aside = _Aside(self._guard, lambda: [self._source, *strings([messages, tools, variables, prefill])])
        context = {"documents": None} | {str(name): aside.put(value) for name, value in variables.items()}
        context |= {
            "messages": [
                self._message(message, aside)
                for message in (messages if self._knows_system else _with_system_said_by_user(messages))
            ],
            "tools": aside.put(tools) if tools else None,
            "add_generation_prompt": True,
            "bos_token": self._tokenizer.bos_token,
            "eos_token": self._tokenizer.eos_token,
        }
        begun = aside.put(prefill)
        try:
            prompt = self._template.render(context) + begun
        except Exception as error:  # a template is somebody's program: it may raise anything
            reason = str(error).translate({ord(char): text for char, text in aside.texts.items()})
            raise TemplateRefusal(
                reason if isinstance(error, _RaisedError) else f"the model's chat template failed: {reason}"
            ) from error
        return prompt, aside.texts

    def _tells_system(self) -> bool:
        """Whether the template takes system messages and tells what they say: Gemma's, for one, do not."""
        self._knows_system = True
        question = {"role": "user", "content": "a question"}
        try:
            self._render([question], None, {})
        except TemplateRefusal:
            return True  # it minds something else
        try:
            prompt, _ = self._render([{"role": "system", "content": "a rule"}, question], None, {})
        except TemplateRefusal:
            return False
        return "a rule" in prompt

    def _message(self, message: Mapping[str, Any], aside: "_Aside") -> dict[str, Any]:
        role = message["role"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        return {"role": role} | {key: aside.put(value) for key, value in message.items() if key != "role"}


def _with_system_said_by_user(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same conversation without system messages: their words begin the user message behind them, or are one."""
    said: list[Mapping[str, Any]] = []
    rules: list[str] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            rules.append(message["content"])
            continue
        if rules and message["role"] == "user":
            said.append({**message, "content": "\n\n".join([*rules, message["content"]])})
        else:
            said += [*_said_by_user(rules), message]
        rules = []
    return said + _said_by_user(rules)


def _said_by_user(rules: list[str]) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": "\n\n".join(rules)}] if rules else []


class _Aside:
    """Texts of a client that must not contribute to control tokens, each behind a private-use character."""

    def __init__(self, guard: "_Guard", texts: Callable[[], Sequence[str]]) -> None:
        """`texts`: all that may be rendered, whose characters cannot be used."""
        self.texts: dict[str, str] = {}
        """By character."""
        self._guard = guard
        self._chars: dict[str, str] = {}
        self._used = texts
        self._unused: Iterator[str] | None = None

    def put(self, value: Any) -> Any:
        """A copy of JSON-like data with such texts replaced. Keys stand between quotes, or are read by the template."""
        if isinstance(value, str):
            return self._text(value, self._guard.find)
        if isinstance(value, Mapping):
            return {self._text(str(key), self._guard.find_whole): self.put(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.put(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise TypeError(f"{type(value).__name__} is nothing that JSON has")  # nothing inside would be guarded

    def _text(self, text: str, find: Callable[[str], list[Span]]) -> str:
        text = _without_surrogates(text)
        spans = find(text)
        if not spans:
            return text
        if self._unused is None:
            self._unused = _unused_characters(self._used())
        changed = _replace(text, spans, self._chars, self._unused)
        self.texts = {char: text for text, char in self._chars.items()}
        return changed


class _Guard:
    """Finds what a client's text must not contribute to control tokens.

    That is each whole control text; the text's end, where it is the beginning of one; and its beginning, where it
    is the end of one, or all of it where it lies inside one. The last two matter only where what the template
    itself writes may end in the beginning of a control text, as in `'<|' + message.name + '|>'`: if a client's
    text begins it, then that text's end is put aside. A template that deletes from the middle of a client's text
    can still join its pieces.
    """

    def __init__(self, texts: Sequence[str], written: Sequence[str]) -> None:
        """`written`: all that the template can write by itself."""
        self._whole = re.compile(literals(texts))
        self._longest = max(map(len, texts), default=0)
        self._first = frozenset(text[0] for text in texts)
        self._beginnings = frozenset(text[:i] for text in texts for i in range(1, len(text)))
        self._ends: frozenset[str] = frozenset()
        self._joined = ""
        if any(self._end(text, 0) for text in written):
            self._ends = frozenset(text[i:] for text in texts for i in range(1, len(text)))
            self._joined = "\0".join(texts)

    def find(self, text: str) -> list[Span]:
        """What to put aside of a client's text: start and end, in order, apart from each other."""
        spans = self.find_whole(text)
        if end := self._end(text, spans[-1][1] if spans else 0):
            spans.append(end)
        if self._ends and (start := self._start(text, spans[0][0] if spans else len(text))):
            spans.insert(0, start)
        return spans

    def find_whole(self, text: str) -> list[Span]:
        """Only whole control texts, for what the template's own text never touches."""
        return [match.span() for match in self._whole.finditer(text)]

    def _end(self, text: str, after: int) -> Span | None:
        """The longest end of the stripped text, from `after` on, that begins a control text."""
        end = len(text.rstrip())
        for start in range(max(after, end - self._longest + 1), end):
            if text[start] in self._first and text[start:end] in self._beginnings:
                return start, end
        return None

    def _start(self, text: str, before: int) -> Span | None:
        """The longest start of the stripped text, up to `before`, that ends a control text or is inside one."""
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        if start < end <= before and end - start < self._longest and text[start:end] in self._joined:
            return start, end
        for end in range(min(before, start + self._longest - 1), start, -1):
            if text[start:end] in self._ends:
                return start, end
        return None


class _RaisedError(TemplateError):
    """A template's own raise_exception."""


class _GenerationTag(Extension):
    """Hugging Face's `{% generation %}`, which marks what to train on, and writes just what it contains."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's transformers give to templates; Markdown, not HTML, so nothing is escaped."""
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


def _without_surrogates(text: str) -> str:
    # JSON can carry halves of surrogate pairs; UTF-8 cannot. Encoding is the fastest way to look for them.
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def _unused_characters(texts: Sequence[str]) -> Iterator[str]:
    used = {char for text in texts for char in _PRIVATE.findall(text)}
    return (char for char in map(chr, chain(*_PRIVATE_RANGES)) if char not in used)


def _replace(text: str, spans: Sequence[Span], chars: dict[str, str], unused: Iterator[str]) -> str:
    """Put `spans` aside, each as the character that `chars` has, or from now on has, for its text."""
    pieces: list[str] = []
    position = 0
    for start, end in spans:
        aside = text[start:end]
        if aside not in chars:
            if (char := next(unused, None)) is None:
                raise TemplateRefusal("the messages use every private-use character")
            chars[aside] = char
        pieces += text[position:start], chars[aside]
        position = end
    return "".join(pieces) + text[position:]
