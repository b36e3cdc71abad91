"""Requests to one model: whether it accepts them, and how they become sequences and choices."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final, Literal
from zlib import crc32

import trio

from api.engine.client import EngineClient
from api.errors import ApiError, unavailable
from api.models.defaults import NOTHING, ModelDefaults
from api.serving.admission import Admission, Place
from api.serving.choice import Choice
from api.serving.grammars import in_thread, invalid_schema
from api.serving.observer import RequestRecord
from api.serving.prompts import Prompt, PromptBuilder, check_tokens
from api.serving.spec import Constraint, Conversation, GenerationSpec, Texts
from api.serving.tickets import Ticket
from api.text.dialects import ToolUse
from api.text.schemas import SchemaError
from api.text.template import template_origin
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineInfo
from scheduler.messages import SamplingParams, Submit, ThoughtLimit

Use = Literal["generate", "embed", "rank"]
"""What a request needs a model for."""
DRY_BREAKERS: Final = ("\n", ":", '"', "*")
"""The defaults of llama.cpp."""
MAX_BREAKERS: Final = 256
"""Texts whose tokens are cached: searching the vocabulary for one takes about 50 ms."""
ENTERING_SECONDS: Final = 0.02
"""How often to look whether requests are still being prepared. Those that are dropped leave without a word."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared request: the sequences to generate, and a choice for each of them."""

    prompts: Sequence[Prompt]
    submits: Sequence[Submit]
    """Grouped by prompt, one for each choice."""
    choices: Sequence[Choice]
    """One for each submit."""
    grammar_param: str
    """The request's field that the grammar comes from, if there is a grammar."""
    place: Place
    """Counts the sequences until they are submitted."""
    record: RequestRecord
    """Where the stations of the request are recorded."""
    ticket: Ticket
    """Counts the request toward limits."""


class ModelService:
    """Everything that the protocols need from one model."""

    def __init__(
        self,
        names: tuple[str, ...],
        tokenizer: Tokenizer,
        engine: EngineClient,
        *,
        max_waiting: int,
        defaults: ModelDefaults | None = None,
    ) -> None:
        """`names`: the model's own name and its aliases. `max_waiting`: how many requests may wait."""
        self.names = names
        self.defaults = defaults or NOTHING
        """The model's own defaults, for fields that a request does not set."""
        self.tokenizer = tokenizer
        self.engine = engine
        self.admission = Admission(engine, max_waiting=max_waiting)
        self.draining = False
        """Whether it refuses new requests."""
        self.template_origin = template_origin(self.defaults.template, tokenizer.chat_template)
        """Where the chat template comes from."""
        self.prompts = PromptBuilder(tokenizer, self.defaults.template or tokenizer.chat_template)
        marks = self.prompts.dialect.marks
        self._markers = {
            token: text.encode() for text, token in tokenizer.special_ids.items() if any(text in mark for mark in marks)
        }
        self._tokens_with = lru_cache(MAX_BREAKERS)(tokenizer.tokens_with)

    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: changes with the model and the engine's properties. Raises ApiError 503."""
        info = self.engine.ready_info()
        return f"fp_{crc32(repr(replace(info, pid=0, load_seconds=0)).encode()):08x}"

    @property
    def num_active(self) -> int:
        """Number of sequences and embedding requests that have not ended, also of those that are being prepared."""
        return self.engine.num_active + self.admission.num_entering

    async def wait_idle(self) -> None:
        """Wait until all requests have ended, also those that are being prepared."""
        while self.num_active:
            await self.engine.wait_idle()
            if self.admission.num_entering:
                await trio.sleep(ENTERING_SECONDS)

    def check_accepting(self, use: Use = "generate") -> None:
        """Check that a request that has this use for the model is accepted.

        Raises ApiError 503 while the model is loading or being stopped, 400 if the model cannot do it, 429 if too many
        requests wait.
        """
        if self.draining:
            raise unavailable("The model is being stopped.", "shutting_down")
        self._check_use(use)
        self.admission.check()

    def _check_use(self, use: Use) -> None:
        """Raises ApiError 400 if the model is of no use for this, 503 without an engine."""
        if (reason := _misuse(self.engine.ready_info(), use)) is not None:
            raise ApiError(400, f"The model {self.names[0]!r} {reason}", param="model", code="unsupported_model")

    async def prepare(self, spec: GenerationSpec) -> Prepared:
        """The sequences and choices of a request.

        Raises ApiError 400 if its constraints are invalid, or if the model's template, vocabulary or context does not
        allow it, 429 if its sequences and those that wait are too many, or if its tenant has used its tokens.
        """
        spec.record.model = self.names[0]
        prompt, several = spec.prompt, spec.num_choices
        if isinstance(prompt, Texts) and len(prompt.prompts) > 1:
            place = self.admission.enter(several * len(prompt.prompts), prompt.param)
        else:
            place = self.admission.enter(several, "n")
        try:
            prompts, submits, choices = await self._sequences(spec)
        except BaseException:
            place.release()
            raise
        grammar_param = spec.constraint.param if spec.constraint else "tools"
        return Prepared(prompts, submits, choices, grammar_param, place, spec.record, spec.ticket)

    async def render(self, spec: GenerationSpec) -> list[Submit]:
        """What a request would generate from: one sequence for each of its prompts, which is never submitted.

        Nothing is counted, if the request has no record and no ticket of its own. Raises the errors of `prepare` and of
        `check_accepting`, except those about how many requests wait and about shutting down.
        """
        self._check_use("generate")
        _, submits, _ = await self._sequences(spec)
        return submits[:: spec.num_choices]

    async def _sequences(self, spec: GenerationSpec) -> tuple[Sequence[Prompt], list[Submit], list[Choice]]:
        """The prompts of a request, its sequences grouped by prompt, and a choice for each sequence."""
        prompts = await self.prompts.build(spec.prompt)
        num_prompt = sum(len(prompt.tokens) for prompt in prompts)
        spec.ticket.reserve(num_prompt)
        params = await self._sampling(spec)
        limits = [self._limit(spec, len(prompt.tokens)) for prompt in prompts]
        grammar, new_choice = await self._answering(spec, prompts, params.min_tokens)
        thoughts = self._thought_limit(spec, prompts)
        prediction = await self.prompts.predicted(spec.prediction, self.engine.ready_info().ctx_len)
        submits = [
            Submit(
                self.engine.next_id(),
                prompt.tokens,
                limit,
                replace(params, seed=params.seed + number),
                logprobs=spec.logprobs,
                score_prompt=spec.score_prompt,
                grammar=grammar,
                thoughts=thoughts,
                tenant=spec.tenant.name,
                weight=spec.tenant.weight,
                priority=spec.tenant.class_of(spec.priority),
                cache_salt=spec.cache_salt,
                prediction=prediction,
            )
            for prompt, limit in zip(prompts, limits, strict=True)
            for number in range(spec.num_choices)
        ]
        choices = [new_choice() for _ in submits]
        spec.record.prepared(prompt_tokens=num_prompt, num_sequences=len(submits), num_prompts=len(prompts))
        return prompts, submits, choices

    async def _sampling(self, spec: GenerationSpec) -> SamplingParams:
        """Precedence: request, the model's own defaults, OpenAI's defaults. The default seed is random."""
        given = {"seed": secrets.randbits(63)} | self.defaults.sampling() | dict(spec.sampling)
        params = SamplingParams(**given)
        if not params.top_p:  # it leaves the best token only
            params = replace(params, temperature=0.0)
        check_tokens(self.tokenizer, [token for token, _ in params.logit_bias], "logit_bias")
        check_tokens(self.tokenizer, spec.stop_tokens, "stop_token_ids")
        if params.dry_multiplier:
            texts = DRY_BREAKERS if spec.dry_breakers is None else spec.dry_breakers
            params = replace(params, dry_breakers=await trio.to_thread.run_sync(self._breakers, texts))
        return params

    def _breakers(self, texts: Sequence[str]) -> list[int]:
        return sorted({token for text in texts for token in self._tokens_with(text)})

    def _limit(self, spec: GenerationSpec, num_prompt: int) -> int:
        """Maximum number of tokens of an answer. Clients may request more than the context has room for.

        Raises ApiError 400 if the prompt leaves no room, or less than the request's `min_tokens`.
        """
        room = self.room(num_prompt, spec.prompt)
        wanted = spec.max_tokens or self.defaults.token_limit or spec.default_max_tokens
        least = spec.sampling.get("min_tokens", 0)
        if wanted is not None and least > wanted:
            message = f"'min_tokens' is {least}, but the limit of the answer is {wanted} tokens."
            raise ApiError(400, message, param="min_tokens", code="invalid_value")
        if least > room:
            context, what = num_prompt + room, spec.prompt.noun
            message = (
                f"This model's maximum context length is {context} tokens. However, you requested at least "
                f"{num_prompt + least} tokens ({num_prompt} in the {what}, 'min_tokens' is {least}). Please reduce the "
                f"length of the {what} or 'min_tokens'."
            )
            raise ApiError(400, message, param="min_tokens", code="context_length_exceeded")
        return room if wanted is None else min(wanted, room)

    def room(self, num_prompt: int, prompt: Conversation | Texts) -> int:
        """Number of tokens for which the context has room after a prompt, at least 1.

        Raises ApiError 400 if there is no room, 503 without an engine.
        """
        context, what = self.engine.ready_info().ctx_len, prompt.noun
        if num_prompt >= context:
            message = (
                f"This model's maximum context length is {context} tokens. However, your {what} resulted in "
                f"{num_prompt} tokens{', which leaves no room for an answer' if num_prompt == context else ''}. Please "
                f"reduce the length of the {what}."
            )
            raise ApiError(400, message, param=prompt.param, code="context_length_exceeded")
        return context - num_prompt

    async def _answering(
        self, spec: GenerationSpec, prompts: Sequence[Prompt], min_tokens: int
    ) -> tuple[str, Callable[[], Choice]]:
        """The grammar that each answer must match, empty for none, and a factory for choices."""
        stops = (self.defaults.stop if spec.stop is None else spec.stop) or ()
        new_choice = partial(Choice, stops=stops, stop_tokens=frozenset(spec.stop_tokens), min_tokens=min_tokens)
        if isinstance(spec.prompt, Texts):
            grammar = await in_thread(spec.constraint.whole) if spec.constraint else ""
            return grammar, lambda: new_choice(self.tokenizer.piece)
        tail = self._tail(spec.prompt, prompts)
        is_free = spec.tool_use is None and spec.constraint is None
        make = partial(self._chat_grammar, spec.tool_use, spec.constraint, tail)
        grammar = "" if is_free else await in_thread(make)
        dialect, keeps = self.prompts.dialect, spec.keeps_reasoning
        is_bound = spec.constraint is not None
        parser = partial(dialect.parser, spec.tool_use, tail, keeps_reasoning=keeps, has_bound_text=is_bound)
        begun = dialect.begun_thought(tail) if keeps else ""
        return grammar, lambda: new_choice(self.answer_piece, parser=parser(), begun=begun)

    def _thought_limit(self, spec: GenerationSpec, prompts: Sequence[Prompt]) -> ThoughtLimit | None:
        """The limit on the reasoning of each answer; None for no limit. A whole grammar has no place for reasoning."""
        is_bound = spec.constraint is not None and spec.constraint.is_whole
        if is_bound or not isinstance(spec.prompt, Conversation):
            return None
        return self.prompts.thought_limit(spec.reasoning_budget, self._tail(spec.prompt, prompts))

    def _tail(self, conversation: Conversation, prompts: Sequence[Prompt]) -> str:
        """The end of a conversation's prompt, which may have begun reasoning."""
        return self.prompts.tail(prompts[0].tokens, conversation)

    def _chat_grammar(self, use: ToolUse | None, content: Constraint | None, prompt_tail: str) -> str:
        """The grammar that an answer must match; empty for none.

        Raises ApiError 400 for constraints that exclude each other, or for a strict tool with an unsupported schema.
        """
        for tool in use.tools if use is not None else ():
            try:
                if tool.strict:
                    tool.rule()
            except SchemaError as error:
                raise invalid_schema(error, f"the strict tool {tool.name!r}", "tools") from error
        if content is not None and content.is_whole:
            if use is not None:
                message = f"{content.param!r} cannot be combined with 'tools'."
                raise ApiError(400, message, param=content.param, code="invalid_value")
            return content.text()
        rule = content.text() if content else None
        self.prompts.dialect.parser(use, prompt_tail)  # compiles its patterns in this thread, not on the event loop
        return self.prompts.dialect.grammar(
            use, content=rule, token_id=self.tokenizer.special_ids.get, prompt_tail=prompt_tail
        )

    def answer_piece(self, token: int) -> bytes:
        """The bytes of a token in an answer. Control tokens in the marks of the model's syntax count as text."""
        return self._markers.get(token) or self.tokenizer.piece(token)

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of prompt and answer, or of a text to embed; None while no engine is ready."""
        info = self.engine.info
        if info is None:
            return None
        return info.ctx_len if info.generates else info.max_text_tokens

    async def health(self) -> dict[str, Any]:
        """The state and statistics of the engine: the last statistics, if it is too busy to send new ones."""
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
            "kv": _kv(info, report.memory) | kv,
            "running": report.scheduler["running"] + report.embedder.get("requests", 0),
            "waiting": report.scheduler["waiting"],
            "statistics": {"scheduler": report.scheduler, "cache": report.cache}
            | ({"embedder": report.embedder} if report.embedder else {}),
            "statistics_age": round(self.engine.report_age, 3),
        }

    @staticmethod
    def no_health() -> dict[str, Any]:
        """The same fields without an engine."""
        return {
            "engine_pid": None,
            "context_length": None,
            "kv": None,
            "running": 0,
            "waiting": 0,
            "statistics": None,
            "statistics_age": None,
        }


def _misuse(info: EngineInfo, use: Use) -> str | None:
    """Why the model is of no use for this, as the end of a sentence; None if it is."""
    ranks = info.pooling == "rank"
    match use:
        case "rank" if not ranks:
            return "does not rank documents: its file does not set the pooling 'rank'."
        case "embed" if ranks:
            return "does not support embeddings: it ranks documents (POST /v1/rerank)."
        case "embed" if info.pooling == "none":
            return (
                "does not support embeddings: its file sets no pooling, and neither does the server "
                "(--pooling mean, for example)."
            )
        case "generate" if not info.generates:
            only = "it ranks documents (POST /v1/rerank)" if ranks else "only embeddings (POST /v1/embeddings)"
            return f"does not generate text, {only}."
    return None


def _kv(info: EngineInfo, memory: dict[str, Any]) -> dict[str, Any]:
    """The size of the KV cache now and at most. `memory`: see Report."""
    return {
        "tokens": memory.get("kv_tokens", info.kv_tokens),
        "max_tokens": memory.get("kv_max", info.kv_tokens),
        "bytes": memory.get("kv_bytes", info.kv_bytes),
        "grows": memory.get("grows", 0),
        "shrinks": memory.get("shrinks", 0),
        "move_seconds": memory.get("move_seconds", 0.0),
        "layout": info.kv_layout,
        "tier": info.tier,
    }
