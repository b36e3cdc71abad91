"""The model that is served: its names, its tokenizer and template, its engine, and whether it takes requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

import trio

from api.engine.client import EngineClient
from api.engine.generation import INVALID_GRAMMAR
from api.errors import ApiError, unavailable
from api.models.defaults import NOTHING, ModelDefaults
from api.protocols.chat.request import ChatRequest
from api.protocols.fields import GenerationRequest
from api.protocols.structured import Constraint
from api.text.dialects import ToolUse, detect, json_rule, problem
from api.text.template import ChatTemplate, TemplateRefusal, strings
from api.text.tokenizer import Tokenizer
from scheduler.messages import SamplingParams

PROMPT_TAIL: Final = 32
"""Tokens at the prompt's end that may have begun a thought."""
INLINE_CHARACTERS: Final = 20_000
"""Prompts up to this long are tokenized on the event loop, in a few milliseconds; longer ones in a thread."""
DRY_BREAKERS: Final = ("\n", ":", '"', "*")
"""llama.cpp's."""
MAX_BREAKERS: Final = 256
"""Texts whose tokens are kept: looking through the vocabulary takes some 50 ms."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to go on from, and the text to echo."""

    tokens: list[int]
    text: str


class ModelService:
    """Everything a route needs to answer for one model."""

    def __init__(
        self,
        names: tuple[str, ...],
        tokenizer: Tokenizer,
        engine: EngineClient,
        *,
        max_waiting: int,
        defaults: ModelDefaults | None = None,
    ) -> None:
        """`names` are the model's own and its aliases; `max_waiting` bounds the requests beyond those that run."""
        self.names = names
        self.defaults = defaults or NOTHING
        """The model's own, for what a request leaves open."""
        self.tokenizer = tokenizer
        self.engine = engine
        self.draining = False
        """Whether it takes no new requests."""
        template = self.defaults.template or tokenizer.chat_template
        self.dialect = detect(template)
        self._template = ChatTemplate(template, tokenizer)
        self._markers = {
            tokenizer.special_ids[text]: text.encode() for text in self.dialect.markers if text in tokenizer.special_ids
        }
        self._tokens_with = lru_cache(MAX_BREAKERS)(tokenizer.tokens_with)
        self._max_waiting = max_waiting

    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: changes with the model and the sizes it is served with. Raises ApiError 503."""
        info = self.engine.ready_info()
        return f"fp_{crc32(repr(replace(info, pid=0, load_seconds=0)).encode()):08x}"

    def check_accepting(self, *, embeds: bool = False) -> None:
        """Of a request that generates, or one that `embeds`.

        Raises ApiError 503 while loading or being stopped, 400 for what the model does not do, 429 when too many wait.
        """
        if self.draining:
            raise unavailable("The model is being stopped.", "shutting_down")
        info = self.engine.ready_info()
        if embeds and info.pooling == "none":
            message = (
                f"The model {self.names[0]!r} makes no embeddings: its file names no way to pool them, and the server "
                "was not started with one (--pooling mean, for instance)."
            )
            raise ApiError(400, message, param="model", code="unsupported_model")
        if not embeds and not info.generates:
            message = f"The model {self.names[0]!r} generates no text; it makes embeddings (POST /v1/embeddings)."
            raise ApiError(400, message, param="model", code="unsupported_model")
        if self.engine.num_active >= info.max_seqs + self._max_waiting:
            message = f"Too many requests: {info.max_seqs} run and {self._max_waiting} wait. Please try again shortly."
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=1)

    async def chat_prompt(self, request: ChatRequest, prefill: str = "") -> list[int]:
        """The tokens of a conversation, and of the beginning of its answer where that is given.

        Raises ApiError 400 if the model's template refuses it, or begins a thought that the beginning would fall into.
        """
        messages = [message.for_template() for message in request.messages]
        tools = request.all_tools() if request.tool_choice != "none" else []
        prepared, listed = self.dialect.prepare(messages, tools)
        variables = request.template_kwargs()
        try:
            if sum(map(len, strings([prepared, listed, variables, prefill]))) > INLINE_CHARACTERS:
                render = self._template.render_tokens
                tokens = await trio.to_thread.run_sync(render, prepared, listed, variables, prefill)
            else:
                tokens = self._template.render_tokens(prepared, listed, variables, prefill)
        except TemplateRefusal as error:
            message = f"The model's chat template refuses these messages: {error}"
            raise ApiError(400, message, param="messages", code="invalid_messages") from error
        if prefill and self.dialect.is_thinking(self.prompt_tail(tokens, prefill)):
            message = "The beginning of an answer is not served in 'messages': this model begins with a thought."
            raise ApiError(400, message, param="messages", code="unsupported_value")
        return tokens

    def prompt_tail(self, prompt: Sequence[int], prefill: str = "") -> str:
        """The text at the prompt's end that may have begun a thought, all of the `prefill` included."""
        return self.tokenizer.text(prompt[-PROMPT_TAIL - 4 * len(prefill) :])  # a character has four tokens at most

    async def text_prompts(self, prompts: Sequence[str] | Sequence[list[int]], suffix: str | None) -> list[Prompt]:
        """Prompts as they are, control tokens included. Raises ApiError 400 for what has no tokens."""
        characters = sum(len(prompt) for prompt in prompts)
        if characters > INLINE_CHARACTERS:
            return await trio.to_thread.run_sync(self._text_prompts, prompts, suffix)
        return self._text_prompts(prompts, suffix)

    def _text_prompts(self, prompts: Sequence[str] | Sequence[list[int]], suffix: str | None) -> list[Prompt]:
        return [self._text_prompt(prompt, suffix) for prompt in prompts]

    def _text_prompt(self, prompt: str | list[int], suffix: str | None) -> Prompt:
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            tokens, text = tokenizer.encode(prompt, parse_special=True), prompt
            if suffix is not None:
                tokens = self._around(tokens, suffix)
            bos = tokenizer.bos_id
            if bos is not None and (tokenizer.add_bos or not tokens) and tokens[:1] != [bos]:
                tokens = [bos, *tokens]
        else:
            unknown = next((token for token in prompt if token >= tokenizer.vocab_size), None)
            if unknown is not None:
                message = f"Token {unknown} is not in the model's vocabulary of {tokenizer.vocab_size}."
                raise ApiError(400, message, param="prompt", code="invalid_value")
            tokens, text = prompt, tokenizer.text(prompt)
            if suffix is not None:
                tokens = self._around(tokens, suffix)
        if not tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt", code="invalid_value")
        return Prompt(tokens, text)

    def _around(self, before: list[int], suffix: str) -> list[int]:
        after = self.tokenizer.encode(suffix, parse_special=True, continues=True)
        tokens = self.tokenizer.fill_in_the_middle(before, after)
        if tokens is None:
            message = "'suffix' is not served: the model has no tokens for filling in the middle."
            raise ApiError(400, message, param="suffix", code="unsupported_parameter")
        return tokens

    async def sampling(self, request: GenerationRequest) -> SamplingParams:
        """What the engine needs. Raises ApiError 400 for a token that the vocabulary does not have."""
        params = request.sampling()
        for token, _ in params.logit_bias:
            if token >= self.tokenizer.vocab_size:
                message = f"Token {token} is not in the model's vocabulary of {self.tokenizer.vocab_size}."
                raise ApiError(400, message, param="logit_bias", code="invalid_value")
        if params.dry_multiplier:
            texts = DRY_BREAKERS if request.dry_sequence_breakers is None else request.dry_sequence_breakers
            params = replace(params, dry_breakers=await trio.to_thread.run_sync(self._breakers, texts))
        return params

    def _breakers(self, texts: Sequence[str]) -> list[int]:
        return sorted({token for text in texts for token in self._tokens_with(text)})

    def chat_grammar(self, use: ToolUse | None, content: Constraint | None, prompt_tail: str) -> str:
        """What an answer must match, empty for anything.

        Raises ApiError 400 for wishes that exclude each other, or for a strict tool whose schema cannot be served.
        """
        for tool in use.tools if use is not None else ():
            if tool.strict and (why := problem(json_rule(tool.schema()))):
                message = f"The schema of the tool {tool.name!r} cannot be served: {why}"
                raise ApiError(400, message, param="tools", code=INVALID_GRAMMAR)
        if content is not None and content.grammar:
            if use is not None:
                message = f"{content.param!r} cannot be combined with 'tools'."
                raise ApiError(400, message, param=content.param, code="invalid_value")
            return content.grammar
        rule = content.rule if content else None
        return self.dialect.grammar(use, content=rule, token_id=self.tokenizer.special_ids.get, prompt_tail=prompt_tail)

    def answer_piece(self, token: int) -> bytes:
        """The bytes of a token in an answer: control tokens that the model's dialect is written with count as text."""
        return self._markers.get(token) or self.tokenizer.piece(token)

    def room(self, num_prompt: int) -> int:
        """Tokens that the context has behind a prompt."""
        return self.engine.ready_info().ctx_len - num_prompt

    def token_limit(self, num_prompt: int, requested: int | None, param: str = "messages") -> int:
        """How many tokens an answer may have. Raises ApiError 400, about `param`, if the context cannot hold it."""
        context = self.engine.ready_info().ctx_len
        if num_prompt + (requested or 1) > context:
            message = f"This model's maximum context length is {context} tokens. However, "
            if requested is None:
                message += f"your {param} resulted in {num_prompt} tokens. Please reduce the length of the {param}."
            else:
                message += (
                    f"you requested {num_prompt + requested} tokens ({num_prompt} in the {param}, {requested} in the"
                    f" completion). Please reduce the length of the {param} or completion."
                )
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return requested or min(context - num_prompt, self.defaults.token_limit or context)

    async def health(self) -> dict[str, Any]:
        """What its engine says of itself."""
        info = self.engine.info
        report = await self.engine.inspect() if info else None
        if info is None or report is None:
            return self.no_health() | {
                "engine_pid": info.pid if info else None,
                "context_length": info.ctx_len if info else None,
            }
        page = report.cache["page_tokens"]
        kv = {f"{use}_tokens": report.cache[f"{use}_pages"] * page for use in ("held", "cached", "free")}
        return {
            "engine_pid": info.pid,
            "context_length": info.ctx_len,
            "kv": {"tokens": info.kv_tokens, "bytes": info.kv_bytes} | kv,
            "running": report.scheduler["running"] + report.embedder.get("requests", 0),
            "waiting": report.scheduler["waiting"],
            "statistics": {"scheduler": report.scheduler, "cache": report.cache}
            | ({"embedder": report.embedder} if report.embedder else {}),
        }

    @staticmethod
    def no_health() -> dict[str, Any]:
        """The same without an engine."""
        return {
            "engine_pid": None,
            "context_length": None,
            "kv": None,
            "running": 0,
            "waiting": 0,
            "statistics": None,
        }
