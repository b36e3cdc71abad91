"""Loads a model and creates the parts of an engine: KV memory, scheduler, runner, embedder."""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial

from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pool import PoolLayout
from kvcache.tier import NO_TIER
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig, EngineInfo
from scheduler.embedder import Embedder
from scheduler.errors import NoMemoryError
from scheduler.grammar import GrammarCompiler
from scheduler.llama.context import MAX_SEQUENCE_IDS, Context, Model, num_gpu_layers
from scheduler.llama.info import encoder_info, generator_info
from scheduler.llama.kv_memory import LaneMemory, PoolMemory
from scheduler.llama.open_tiers import Tiers, open_tiers
from scheduler.llama.reader import Attention, LlamaReader, attention_of, text_limits
from scheduler.llama.runner import LlamaRunner
from scheduler.llama.tuning import tuned
from scheduler.machine import cores
from scheduler.pacing import Pacer
from scheduler.planner import MAX_SCORED_TOKENS
from scheduler.scheduler import Scheduler
from scheduler.sizing import DEFAULT_CTX_LEN, GIB, Sizes, available_bytes, choose


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an engine."""

    scheduler: Scheduler
    runner: LlamaRunner
    compiler: GrammarCompiler
    info: EngineInfo
    embedder: Embedder | None = None
    """None if the model makes no embeddings."""


@dataclass(frozen=True, slots=True)
class _Device:
    """The KV memory with its sizes, its cache and its tiers."""

    sizes: Sizes
    context: Context
    cache: KVCache
    tiers: Tiers | None


def load(config: EngineConfig) -> Parts:
    """Loads the configured model, warmed up and ready to run steps.

    Raises ModelError with one line for the user, or NoMemoryError if the model does not fit into memory.
    """
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
        device = _open(config, model, "pages evicted from lanes could not be kept; see the log above")
    sizes, context = device.sizes, device.context
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
    info = generator_info(config, model, sizes, device.tiers, pooling, started)
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder)


def _load_encoder(config: EngineConfig, model: Model, attention: Attention, pooling: str, started: float) -> Parts:
    """Loads a model that only makes embeddings. Its scheduler has no KV memory, and rejects all generation requests."""
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
    embedder = Embedder(lambda: reader, limits, pooling, seconds_per_token)
    return Parts(scheduler, runner, GrammarCompiler(model.grammar_tokenizer), info, embedder)


def _refuse_without_memory(config: EngineConfig, model: Model, sizes: Sizes) -> None:
    """Raises NoMemoryError if weights and KV do not fit into the memory of this machine."""
    if num_gpu_layers(config.gpu_layers, model.num_layers):
        return
    kv_bytes = sizes.kv_tokens * model.kv_bytes_per_token(config.kv_type)
    available = available_bytes(config)
    if missing := max(0, model.num_bytes + kv_bytes - available):
        needs = (
            f"{model.num_bytes / GIB:.1f} GiB of memory for its weights and {kv_bytes / GIB:.1f} GiB for its KV cache"
        )
        reason = f"it would take {needs}, but only {available / GIB:.1f} GiB are available"
        raise NoMemoryError(f"{config.model_path}: {reason}", missing)


def _open(config: EngineConfig, model: Model, why_pool: str = "") -> _Device:
    """Opens the KV memory. A reason in `why_pool` forces the layout pool. Raises ModelError."""
    if config.kv_layout == "auto" and not model.shares_prefixes:
        why_pool = "the model has a recurrent state, not only KV cells"
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
    _refuse_without_memory(config, model, sizes)
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
    num_pages = sizes.kv_tokens // PAGE_TOKENS
    layout: Layout
    if in_lanes:
        layout = LaneLayout(num_pages // sizes.max_seqs, memory.num_ids, keeps_evicted=tiers is not None)
    else:
        max_cached = sizes.idle_tokens // PAGE_TOKENS if memory.moves_pages else None
        layout = PoolLayout(num_pages, memory.num_ids, max_cached=max_cached)
    cache = KVCache(memory, layout, tiers.host if tiers else NO_TIER, sharing=sharing)
    return _Device(sizes, context, cache, tiers)
