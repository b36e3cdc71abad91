"""Serves a chat template by the product's own path: a stub vocabulary, requests, and the tokens of answers."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import trio

from api.engine.client import EngineClient
from api.protocols.chat.conversation import as_spec
from api.protocols.chat.request import ChatRequest
from api.protocols.fields import parse
from api.serving.choice import Choice
from api.serving.service import ModelService, Prepared
from api.text.dialects import CallArguments, CallBegin, Content, Reasoning
from api.text.literals import literals
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output

FIRST_ID: Final = 100
"""Of the tokens that a stub vocabulary makes."""


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    ids: tuple[str, ...] = field(default=(), compare=False)
    """Of the calls."""


class StubVocabulary:
    """A vocabulary that grows: words, marks and spaces are tokens. The control tokens have no text."""

    bos_id: int | None = None
    bos_token = "<s>"
    eos_token = "</s>"
    add_bos = False
    trained_context = 0
    vocab_size = 1 << 20

    def __init__(self, source: str, controls: Sequence[str] = (), ids: Mapping[str, int] | None = None) -> None:
        """`ids`: those of control tokens, below 100; the others get ids from 100 on."""
        self.chat_template: str | None = source
        self.control_texts: tuple[str, ...] = tuple(dict.fromkeys([*controls, self.bos_token, self.eos_token]))
        self.metadata: dict[str, str] = {}
        self._control = re.compile(f"({literals(self.control_texts)})")
        self._texts = [""] * FIRST_ID
        self.end_texts: frozenset[str] = frozenset()
        self.special_ids = dict(ids or {})
        for text, token in self.special_ids.items():
            self._texts[token] = text
        for text in self.control_texts:
            if text not in self.special_ids:
                self.special_ids[text] = self._new_id(text)
        self._controls = frozenset(self.special_ids.values())
        self._ids: dict[str, int] = {}
        """Of tokens that are no control tokens."""

    def _new_id(self, text: str) -> int:
        self._texts.append(text)
        return len(self._texts) - 1

    def _id(self, text: str) -> int:
        if text not in self._ids:
            self._ids[text] = self._new_id(text)
        return self._ids[text]

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        if not parse_special:
            return self._pieces(text, 0)
        return self.cut(text, 0)

    def cut(self, text: str, size: int) -> list[int]:
        """Tokens of so many characters; 0 for words. Control tokens stay whole."""
        parts = self._control.split(text)
        tokens: list[int] = []
        for plain, control in itertools.zip_longest(parts[::2], parts[1::2], fillvalue=""):
            tokens += self._pieces(plain, size)
            if control:
                tokens.append(self.special_ids[control])
        return tokens

    def _pieces(self, text: str, size: int) -> list[int]:
        pieces = (
            [text[i : i + size] for i in range(0, len(text), size)] if size else re.findall(r"\w+|\s+|[^\w\s]", text)
        )
        return [self._id(piece) for piece in pieces]

    def piece(self, token: int) -> bytes:
        return b"" if token in self._controls else self._texts[token].encode()

    def spelled(self, token: int) -> bytes:
        return self._texts[token].encode()

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self._texts[token] for token in tokens)

    def tokens_with(self, text: str) -> list[int]:
        return []


class Served:
    """A template and its vocabulary, as a model that takes requests."""

    def __init__(self, source: str, controls: Sequence[str] = (), ids: Mapping[str, int] | None = None) -> None:
        self.vocabulary = StubVocabulary(source, controls, ids)
        info = SimpleNamespace(ctx_len=1 << 20, max_seqs=128, generates=True, pooling="none")
        engine = SimpleNamespace(ready_info=lambda: info, info=info, num_active=0, next_id=itertools.count().__next__)
        self.service = ModelService(("m",), cast(Tokenizer, self.vocabulary), cast(EngineClient, engine), max_waiting=8)
        self._choices: dict[str, Iterator[Choice]] = {}

    def prepare(self, body: dict[str, Any]) -> Prepared:
        """Raises ApiError if the request is refused."""
        prepared = trio.run(self.service.prepare, as_spec(parse(ChatRequest, {"model": "m", **body})))
        prepared.place.release()
        return prepared

    def prompt(self, body: dict[str, Any]) -> str:
        return self.vocabulary.text(self.prepare(body).submits[0].tokens)

    def grammar(self, body: dict[str, Any]) -> str:
        return self.prepare(body).submits[0].grammar

    def answer(self, body: dict[str, Any], raw: str, size: int = 0) -> Answer:
        """What a client gets for this answer of the model, in tokens of so many characters; 0 for words."""
        return read(self._choice(body), self.vocabulary.cut(raw, size))

    def _choice(self, body: dict[str, Any]) -> Choice:
        """A fresh choice. Preparing a request takes longer than reading an answer, so one request has many."""
        key = json.dumps(body)
        choice = next(self._choices.get(key, iter(())), None)
        if choice is None:
            self._choices[key] = iter(self.prepare(body | {"n": 64}).choices)
            choice = next(self._choices[key])
        return choice


def read(choice: Choice, tokens: Sequence[int]) -> Answer:
    """What a choice makes of tokens that come one by one. Raises ValueError if the arguments of a call are no JSON."""
    outputs = [Output(0, tokens=[token]) for token in tokens] or [Output(0)]
    outputs[-1].finish_reason = "stop"
    content, reasoning = "", ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    ids: dict[int, str] = {}
    for event in itertools.chain.from_iterable(choice.push(output).events for output in outputs):
        match event:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallBegin(index, call_id, name):
                names[index], arguments[index], ids[index] = name, "", call_id
            case CallArguments(index, text):
                arguments[index] += text
    calls = tuple(Call(names[index], json.loads(arguments[index])) for index in sorted(names))
    return Answer(content, reasoning, calls, tuple(ids[index] for index in sorted(ids)))
