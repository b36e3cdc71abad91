"""Loads a model and creates the parts of an engine: KV memory, scheduler, runner, embedder."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kvcache.cache import KVCache
from kvcache.events import NO_LISTENER
from kvcache.pool import PoolLayout
from scheduler.config import EngineConfig, EngineInfo
from scheduler.drafts.amount import Amounts
from scheduler.drafts.drafter import Drafter
from scheduler.drafts.drafting import Drafting
from scheduler.drafts.passes import PassSeconds
from scheduler.drafts.prediction import PredictionDrafter
from scheduler.drafts.suffix import SuffixDrafter
from scheduler.elastic import Elastic
from scheduler.embedder import Embedder
from scheduler.errors import ModelError
from scheduler.fair import FairShares
from scheduler.grammar import GrammarCompiler
from scheduler.kv_events.opening import open_publisher
from scheduler.llama.device import Device, kv_memory, open_device
from scheduler.llama.draft_model import OpenedDrafts, open_draft_model, wants_drafts
from scheduler.llama.info import encoder_info, generator_info
from scheduler.llama.kv_memory import PoolMemory
from scheduler.llama.model import Model, num_gpu_layers
from scheduler.llama.reader import Attention, LlamaReader, attention_of, text_limits
from scheduler.llama.runner import LlamaRunner
from scheduler.llama.threads import ThreadController
from scheduler.llama.tuning import tuned
from scheduler.llama.weights import open_model
from scheduler.machine import cores
from scheduler.pacing import Pacer
from scheduler.scheduler import Scheduler
from scheduler.sizing import DEFAULT_CTX_LEN, check_kv

if TYPE_CHECKING:
    from scheduler.kv_events.publisher import Publisher

_log = logging.getLogger("cortex.engine")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an engine."""

    scheduler: Scheduler
    runner: LlamaRunner
    compiler: GrammarCompiler
    info: EngineInfo
    embedder: Embedder | None = None
    """None if the model makes no embeddings."""
    elastic: Elastic | None = None
    """None if the KV memory has a fixed size."""
    publisher: "Publisher | None" = None
    """Publishes KV events, from `start` to `close`. None if they are off."""


def load(config: EngineConfig) -> Parts:
    """Loads the configured model, warmed up and ready to run steps.

    Raises ModelError with one line for the user, or NoMemoryError if the model does not fit into memory. Every other
    exception becomes a ModelError too; its traceback is logged at level DEBUG.
    """
    publisher = open_publisher(config)  # before the model, so that a port in use is reported at once
    try:
        return _load(config, publisher)
    except BaseException as error:
        if publisher is not None:
            publisher.close()
        if isinstance(error, ModelError) or not isinstance(error, Exception):
            raise
        _log.debug("loading failed", exc_info=True)
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{config.model_path} cannot be loaded: {cause}") from error


def _load(config: EngineConfig, publisher: "Publisher | None") -> Parts:
    started = time.monotonic()
    check_kv(config)
    model = open_model(config)
    model.try_vocabulary()
    num_layers_on_gpu = num_gpu_layers(config.gpu_layers, model.num_layers)
    adapts_threads = config.threads is None and not num_layers_on_gpu
    config = tuned(config, model)
    pooling = model.pooling(config.pooling)
    attention = attention_of(model, config, pooling) if pooling != "none" else None
    if attention is not None and pooling == "rank":
        attention = dataclasses.replace(attention, is_causal=False)  # the score is of the whole text
    if attention is not None and not attention.is_causal:
        if wants_drafts(config):
            raise ModelError(f"--draft-model: {config.model_path} generates no text")
        if publisher is not None:
            raise ModelError(f"--kv-events: {config.model_path} generates no text")
        return _load_encoder(config, model, attention, pooling, started)
    drafts = open_draft_model(config, model)  # before the KV memory, so that both fit
    if drafts is not None:
        config = dataclasses.replace(config, others_bytes=config.others_bytes + drafts.mapped_bytes)
    device = open_device(config, model, publisher or NO_LISTENER)
    sizes, context = device.sizes, device.context
    threads = ThreadController(sizes.threads) if adapts_threads else None
    if threads is not None:
        device.opener.busy = threads.paused
    runner = LlamaRunner(
        context,
        model.eog_tokens,
        max_seqs=sizes.max_seqs,
        vocab_size=model.vocab_size,
        backend_top_k=config.backend_top_k,
        threads=threads,
    )
    seconds_per_token, row_seconds = runner.warm_up()
    pacer = Pacer(seconds_per_token, sizes.max_mixed_tokens, config.itl_target, full_speed=sizes.full_speed_tokens)
    token_budget = min(sizes.batch_tokens, context.batch_tokens)
    passes = PassSeconds(seconds_per_token, row_seconds, _cell_share(model, device, on_gpu=num_layers_on_gpu > 0))
    amounts = Amounts(passes, pacer, in_lanes=sizes.layout == "lanes")
    scheduler = Scheduler(
        device.cache,
        pacer,
        max_seqs=sizes.max_seqs,
        token_budget=token_budget,
        ctx_len=sizes.ctx_len,
        eog_tokens=model.eog_tokens,
        piece=model.piece,
        max_top_k=config.backend_top_k,
        max_answers=sizes.max_answers,
        in_lanes=sizes.layout == "lanes",
        policy=FairShares(token_budget, pacer),
        drafting=Drafting(
            _drafters(config, device, drafts, on_gpu=num_layers_on_gpu > 0),
            amounts,
            max_tokens=min(token_budget, sizes.max_answers),
            max_top_k=config.backend_top_k,
        ),
    )
    embedder = None
    if attention is not None:
        limits = text_limits(config, model, attention, sizes.ctx_len)
        open_reader = partial(LlamaReader, model, config, limits, pooling, sizes.threads)
        embedder = Embedder(open_reader, limits, pooling, seconds_per_token, scheduler.charge)
    info = generator_info(config, model, device, pooling, drafts, started)
    elastic = _elastic(config, model, device, scheduler, runner)
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder, elastic, publisher)


def _cell_share(model: Model, device: Device, *, on_gpu: bool) -> float:
    """Returns how long a row takes to read a cell, as a part of the time of a pass of one row, which reads the weights.

    0 on a GPU, where the rows of a sequence read their cells together.
    """
    return 0.0 if on_gpu else device.kv_bytes / device.sizes.shapes.start.tokens / model.num_bytes


def _elastic(
    config: EngineConfig, model: Model, device: Device, scheduler: Scheduler, runner: LlamaRunner
) -> Elastic | None:
    shapes = device.sizes.shapes
    if shapes.is_fixed:
        return None
    device.opener.use = runner.use
    memory = kv_memory(config, model)
    return Elastic(
        scheduler,
        shapes,
        device.opener,
        shapes.start,
        max_tokens=shapes.max_tokens,
        available=memory.available,
        total_bytes=memory.total_bytes,
        keeps_evicted=device.tiers.kind != "none",
    )


def _drafters(config: EngineConfig, device: Device, drafts: OpenedDrafts | None, *, on_gpu: bool) -> list[Drafter]:
    """Returns what drafts tokens: nothing if the option is off, or if the model's states cannot be cut.

    Sequences share no prefixes if their states cannot be cut, because they are recurrent or because a proof has failed.
    On an H100, a small model was slower with drafts. Why was not measured.
    """
    if config.draft == "off" or not device.cache.sharing:
        return []
    if config.draft == "auto" and on_gpu and drafts is None:
        return []
    return [PredictionDrafter(), SuffixDrafter(), *([] if drafts is None else [drafts.drafter])]


def _load_encoder(config: EngineConfig, model: Model, attention: Attention, pooling: str, started: float) -> Parts:
    """Loads a model that generates no text. Its scheduler has no KV memory, and rejects all generation requests."""
    ctx_len = min(config.ctx_len or DEFAULT_CTX_LEN, model.trained_context or DEFAULT_CTX_LEN)
    limits = text_limits(config, model, attention, ctx_len)
    threads = config.threads or cores()
    reader = LlamaReader(model, config, limits, pooling, threads)
    seconds_per_token = reader.warm_up()
    context = reader.context
    cache = KVCache(PoolMemory(context), PoolLayout(num_pages=0, num_ids=0))
    scheduler = Scheduler(cache, Pacer(seconds_per_token), max_seqs=1, token_budget=1, ctx_len=0)
    runner = LlamaRunner(context, model.eog_tokens, max_seqs=1, vocab_size=model.vocab_size)
    info = encoder_info(config, model, limits, threads, pooling, started)
    embedder = Embedder(lambda: reader, limits, pooling, seconds_per_token, scheduler.charge)
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder)
