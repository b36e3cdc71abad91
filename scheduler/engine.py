"""The engine: loads a model and turns requests into tokens, one step after another."""

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from kvcache.cache import KVCache
from kvcache.lanes import LaneCache
from kvcache.pool import PoolCache
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig, EngineInfo
from scheduler.embedder import Embedder
from scheduler.grammar import Compiled, Grammar, GrammarCompiler, GrammarError
from scheduler.llama import MAX_SEQUENCE_IDS, Context, Model, NoMemoryError, num_gpu_layers
from scheduler.machine import cores
from scheduler.memory import LaneMemory, PoolMemory
from scheduler.messages import Cancel, Embed, Embedded, Inspect, Message, Output, Report, Stop, Submit
from scheduler.pacing import Pacer
from scheduler.plan import Runner, StepError
from scheduler.reader import Attention, LlamaReader, attention_of, text_limits
from scheduler.runner import LlamaRunner
from scheduler.scheduler import MAX_SCORED_TOKENS, Scheduler
from scheduler.sizing import DEFAULT_CTX_LEN, GIB, Sizes, available_bytes, choose
from scheduler.tiers import Tiers, open_tiers
from scheduler.tuning import tuned

_log = logging.getLogger("cortex.engine")

CLOSE_SECONDS: Final = 3.0
"""What an engine that was told to stop may take to bring its pages to the disk."""


class Wire(Protocol):
    """What the engine needs of scheduler.link."""

    def receive(self, *, wait: bool) -> list[Message | Compiled]: ...
    def post(self, compiled: Compiled) -> None: ...
    def send(self, message: Message) -> None: ...
    def send_outputs(self, outputs: list[Output]) -> None: ...


class Engine:
    """Steps while there is work, waits for messages while there is none. Answers and vectors take turns."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        compiler: GrammarCompiler,
        wire: Wire,
        embedder: Embedder | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._compiler = compiler
        self._wire = wire
        self._embedder = embedder
        self._compiling: set[int] = set()
        """Requests whose grammars are being compiled; the scheduler does not know them yet."""
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop."""
        while not self._stopping:
            if not self._scheduler.has_work:
                self._scheduler.cache.check_integrity()
            for message in self._wire.receive(wait=not (self._scheduler.has_work or self._has_texts)):
                self._handle(message)
            if self._scheduler.has_work and not self._stopping:
                self._wire.send_outputs(self._step())
            if self._has_texts and not self._stopping:
                self._read_texts()
        self._scheduler.cache.close(CLOSE_SECONDS)

    @property
    def _has_texts(self) -> bool:
        return self._embedder is not None and self._embedder.has_work

    def _step(self) -> list[Output]:
        plan = self._scheduler.plan()
        try:
            result = self._runner.run(plan)
        except StepError as error:
            _log.error("step failed: %s; it was %s", error, plan)
            return self._scheduler.rollback(plan)
        return self._scheduler.commit(plan, result)

    def _read_texts(self) -> None:
        assert self._embedder is not None, "somebody has texts"
        seconds = self._scheduler.spare_seconds
        if seconds is not None:
            for embedded in self._embedder.step(seconds):
                self._wire.send(embedded)

    def _handle(self, message: Message | Compiled) -> None:
        match message:
            case Submit() if message.grammar:
                self._compiling.add(message.request_id)
                self._compiler.compile(message, self._wire.post)
            case Submit():
                self._submit(message)
            case Compiled(submit, grammar):
                if submit.request_id in self._compiling:
                    self._compiling.remove(submit.request_id)
                    self._begin(submit, grammar)
            case Embed():
                self._embed(message)
            case Cancel(request_id):
                self._compiling.discard(request_id)
                self._scheduler.cancel(request_id)
                if self._embedder is not None:
                    self._embedder.cancel(request_id)
            case Inspect():
                self._wire.send(
                    Report(
                        dataclasses.asdict(self._scheduler.statistics()),
                        dataclasses.asdict(self._scheduler.cache.statistics()),
                        dataclasses.asdict(self._embedder.statistics()) if self._embedder is not None else {},
                    )
                )
            case Stop():
                self._stopping = True
            case _:
                _log.error("not a message for an engine: %s", type(message).__name__)

    def _begin(self, submit: Submit, grammar: Grammar | GrammarError) -> None:
        """A request with a grammar hears at once whether it is served."""
        if isinstance(grammar, GrammarError):
            self._wire.send_outputs([Output(submit.request_id, finish_reason="refused", error=str(grammar))])
        else:
            if not submit.answer:
                self._wire.send_outputs([Output(submit.request_id)])
            self._submit(submit, grammar)

    def _submit(self, submit: Submit, grammar: Grammar | None = None) -> None:
        refusal = self._scheduler.submit(submit, grammar)
        if refusal is not None:
            self._wire.send_outputs([refusal])

    def _embed(self, embed: Embed) -> None:
        if self._embedder is None:
            refusal: Embedded | None = Embedded(embed.request_id, error="this model makes no vectors of texts")
        else:
            refusal = self._embedder.submit(embed)
        if refusal is not None:
            self._wire.send(refusal)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    scheduler: Scheduler
    runner: LlamaRunner
    compiler: GrammarCompiler
    info: EngineInfo
    embedder: Embedder | None = None
    """For models that make vectors of texts."""


@dataclass(frozen=True, slots=True)
class _Device:
    """KV memory, as it was chosen, and where its pages go."""

    sizes: Sizes
    context: Context
    cache: KVCache
    tiers: Tiers | None


def load(config: EngineConfig) -> Parts:
    """The model of a configuration, warmed up and ready to step. Raises ModelError with a line for the user."""
    started = time.monotonic()
    model = Model(config.model_path, config.gpu_layers)
    model.try_vocabulary()
    config = tuned(config, model)
    pooling = model.pooling(config.pooling)
    attention = attention_of(model, config, pooling) if pooling != "none" else None
    if attention is not None and not attention.is_causal:
        return _load_encoder(config, model, attention, pooling, started)
    device = _open(config, model)
    if device.sizes.layout == "lanes" and config.kv_layout == "auto" and device.tiers is None:
        device.context.close()
        device = _open(config, model, "what gives way in lanes could not be kept: see above")
    sizes, context, tiers = device.sizes, device.context, device.tiers
    runner = LlamaRunner(
        context,
        model.eog_tokens,
        max_seqs=sizes.max_seqs,
        vocab_size=model.vocab_size,
        backend_top_k=config.backend_top_k,
    )
    seconds_per_token = runner.warm_up()
    scheduler = Scheduler(
        device.cache,
        Pacer(seconds_per_token, sizes.max_mixed_tokens, config.itl_target),
        max_seqs=sizes.max_seqs,
        token_budget=min(sizes.batch_tokens, context.batch_tokens),
        ctx_len=sizes.ctx_len,
        eog_tokens=model.eog_tokens,
        max_top_k=config.backend_top_k,
        max_answers=sizes.max_answers,
    )
    embedder = None
    if attention is not None:
        limits = text_limits(config, model, attention, sizes.ctx_len)
        open_reader = partial(LlamaReader, model, config, limits, pooling, sizes.threads)
        embedder = Embedder(open_reader, limits, pooling, seconds_per_token)
    info = EngineInfo(
        pid=os.getpid(),
        description=model.description,
        ctx_len=sizes.ctx_len,
        max_seqs=sizes.max_seqs,
        kv_tokens=sizes.kv_tokens,
        kv_bytes=sizes.kv_tokens * model.kv_bytes_per_token(config.kv_type),
        kv_layout=sizes.layout,
        kv_layout_reason=sizes.layout_reason,
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        host_cache=tiers.host_bytes if tiers else 0,
        disk_cache=tiers.disk_bytes if tiers else 0,
        gpu_layers=num_gpu_layers(config.gpu_layers, model.num_layers),
        load_seconds=round(time.monotonic() - started, 3),
        pooling=pooling,
        embedding_size=model.embedding_size if embedder is not None else 0,
        max_text_tokens=sizes.ctx_len if embedder is not None else 0,
    )
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder)


def _load_encoder(config: EngineConfig, model: Model, attention: Attention, pooling: str, started: float) -> Parts:
    """A model that only reads: its scheduler has no memory, and refuses whatever is to be generated."""
    ctx_len = min(config.ctx_len or DEFAULT_CTX_LEN, model.trained_context or DEFAULT_CTX_LEN)
    limits = text_limits(config, model, attention, ctx_len)
    threads = config.threads or cores()
    reader = LlamaReader(model, config, limits, pooling, threads)
    seconds_per_token = reader.warm_up()
    context = reader.context
    cache = PoolCache(PoolMemory(context), num_pages=0, num_ids=0)
    scheduler = Scheduler(cache, Pacer(seconds_per_token), max_seqs=1, token_budget=1, ctx_len=0)
    runner = LlamaRunner(context, model.eog_tokens, max_seqs=1, vocab_size=model.vocab_size)
    info = EngineInfo(
        pid=os.getpid(),
        description=model.description,
        ctx_len=limits.max_text_tokens,
        max_seqs=limits.max_texts,
        kv_tokens=0,
        kv_bytes=0,
        kv_layout="pool",
        kv_layout_reason="a model that only reads keeps nothing in it",
        batch_tokens=limits.batch_tokens,
        threads=threads,
        host_cache=0,
        disk_cache=0,
        gpu_layers=num_gpu_layers(config.gpu_layers, model.num_layers),
        load_seconds=round(time.monotonic() - started, 3),
        generates=False,
        pooling=pooling,
        embedding_size=model.embedding_size,
        max_text_tokens=limits.max_text_tokens,
    )
    embedder = Embedder(lambda: reader, limits, pooling, seconds_per_token)
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder)


def _open(config: EngineConfig, model: Model, why_pool: str = "") -> _Device:
    """With a reason for it, in a pool whatever the configuration says. Raises ModelError."""
    if config.kv_layout == "auto" and not model.shares_prefixes:
        why_pool = "the model keeps a state, not cells"
    if why_pool:
        config = dataclasses.replace(config, kv_layout="pool")
    sizes = choose(
        config,
        trained_context=model.trained_context,
        model_bytes=model.num_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(config.kv_type),
        on_gpu=num_gpu_layers(config.gpu_layers, model.num_layers) > 0,
    )
    if why_pool:
        sizes = dataclasses.replace(sizes, layout_reason=why_pool)
    if not num_gpu_layers(config.gpu_layers, model.num_layers):
        kv_bytes = sizes.kv_tokens * model.kv_bytes_per_token(config.kv_type)
        available = available_bytes(config)
        if missing := max(0, model.num_bytes + kv_bytes - available):
            needs = f"{model.num_bytes / GIB:.1f} GiB of memory and {kv_bytes / GIB:.1f} GiB for its KV"
            reason = f"it would take {needs}, of which {available / GIB:.1f} GiB are available"
            raise NoMemoryError(f"{config.model_path}: {reason}", missing)
    in_lanes, sharing = sizes.layout == "lanes", model.shares_prefixes
    context = Context(
        model,
        config,
        kv_tokens=sizes.kv_tokens,
        num_ids=sizes.max_seqs if in_lanes else MAX_SEQUENCE_IDS if sharing else max(2, sizes.max_seqs),
        num_outputs=sizes.max_seqs + MAX_SCORED_TOKENS,
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        unified=not in_lanes,
    )
    memory = LaneMemory(context) if in_lanes else PoolMemory(context)
    tiers = open_tiers(config, model, memory)
    host, num_pages = tiers.host if tiers else None, sizes.kv_tokens // PAGE_TOKENS
    cache: KVCache
    if in_lanes:
        cache = LaneCache(memory, num_pages // sizes.max_seqs, memory.num_ids, sharing=sharing, tier=host)
    else:
        max_cached = sizes.idle_tokens // PAGE_TOKENS if memory.moves_pages else None
        cache = PoolCache(memory, num_pages, memory.num_ids, sharing=sharing, tier=host, max_cached=max_cached)
    return _Device(sizes, context, cache, tiers)
