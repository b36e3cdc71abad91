"""Cortex as the measures use it: a template becomes a model service, a request a prompt, a grammar and an answer."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import trio

from api.engine.client import EngineClient
from api.errors import ApiError
from api.protocols.chat.conversation import as_spec
from api.protocols.chat.request import ChatRequest
from api.protocols.fields import parse
from api.serving.choice import Choice
from api.serving.service import ModelService, Prepared
from api.serving.spec import Conversation
from api.text.dialects import CallArguments, CallBegin, Content, Reasoning, describe
from api.text.template import ChatTemplate
from api.text.tokenizer import ModelError, Tokenizer
from scheduler.messages import Output
from tests.families.cases import Answer, Call, Case
from tests.stub_vocabulary import StubTokenizer, bos_and_eos

CONTEXT = 1 << 20


class RefusedError(Exception):
    """The model or the request is refused. The message is the one that a user gets."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """What Cortex knows of the answers of a template's models. `Family.syntax` is the only place that reads it."""

    name: str
    """Of the dialect."""
    thinks: bool
    marks: frozenset[str]
    """The texts in answers whose control tokens are text for the parser."""
    learned: str
    """In a few words."""


class Family:
    """A template, served by a model service without an engine."""

    def __init__(self, source: str, controls: Iterable[str] = (), user_defined: Iterable[str] = ()) -> None:
        """The vocabulary is a StubTokenizer with these tokens. Raises RefusedError if `source` does not compile."""
        self.tokenizer = StubTokenizer(source, controls, user_defined)
        try:
            self._service = ModelService(("m",), cast(Tokenizer, self.tokenizer), _engine(), max_waiting=8)
        except ModelError as error:
            raise RefusedError(str(error)) from error

    @property
    def syntax(self) -> Syntax:
        dialect = self._service.prompts.dialect
        learned = describe(dialect.learned)
        return Syntax(dialect.name, dialect.thinks, dialect.marks, learned)

    def prompt(self, body: dict[str, Any]) -> str:
        """Raises RefusedError, like all below."""
        return self.tokenizer.text(self._prepared(body).submits[0].tokens)

    def grammar(self, body: dict[str, Any]) -> str:
        return self._prepared(body).submits[0].grammar

    def answers(self, case: Case, sizes: Sequence[int]) -> tuple[str, list[Answer]]:
        """The prompt, and the answers if the model's output comes in tokens of these sizes (see StubTokenizer.cut)."""
        prepared = self._prepared(case.body() | {"n": len(sizes)}, case.prefill)
        prompt = self.tokenizer.text(prepared.submits[0].tokens)
        cut = [self.tokenizer.cut(case.raw, size) for size in sizes]
        return prompt, [_answer(choice, tokens) for choice, tokens in zip(prepared.choices, cut, strict=True)]

    def _prepared(self, body: dict[str, Any], prefill: str = "") -> Prepared:
        try:
            spec = as_spec(parse(ChatRequest, body))
            if prefill:
                assert isinstance(spec.prompt, Conversation)
                spec = dataclasses.replace(spec, prompt=dataclasses.replace(spec.prompt, prefill=prefill))
            prepared = trio.run(self._service.prepare, spec)
        except (ApiError, ModelError) as error:
            raise RefusedError(str(error)) from error
        prepared.place.release()
        return prepared


class BareTemplate:
    """A template by itself, without what Cortex prepares for it."""

    def __init__(self, source: str) -> None:
        """Raises ModelError if it does not compile."""
        self._template = ChatTemplate(source, StubTokenizer(source))._template
        self._around = dict(zip(("bos_token", "eos_token"), bos_and_eos(source), strict=True))

    def render(self, variables: dict[str, Any]) -> str:
        """A template is a program: it may raise anything."""
        return str(self._template.render(self._around | {"documents": None} | variables))


def _engine() -> EngineClient:
    """An engine that is ready, and never asked."""
    info = SimpleNamespace(ctx_len=CONTEXT, max_seqs=8, generates=True, pooling="none")
    ids = itertools.count()
    engine = SimpleNamespace(ready_info=lambda: info, info=info, failure=None, num_active=0, next_id=lambda: next(ids))
    return cast(EngineClient, engine)


def _answer(choice: Choice, tokens: Sequence[int]) -> Answer:
    """The answer that a client gets if these tokens come one by one."""
    outputs = [Output(0, tokens=[token]) for token in tokens] or [Output(0)]
    outputs[-1].finish_reason = "stop"
    content, reasoning = "", ""
    calls: dict[int, list[str]] = {}
    for output in outputs:
        for event in choice.push(output).events:
            match event:
                case Content():
                    content += event.text
                case Reasoning():
                    reasoning += event.text
                case CallBegin():
                    calls[event.index] = [event.name, ""]
                case CallArguments():
                    calls[event.index][1] += event.text
    return Answer(content, reasoning, tuple(Call(*calls[index]) for index in sorted(calls)))
