"""Opens the KV memory of a model: its sizes, a layout that is proven to work, its cache and its tiers.

What fails its proof is replaced: lanes by a pool, shared prefixes by private ones, many sequences by one at a time,
pages in tiers by whole sequences, and these by no tiers. The log says what was replaced and why.
"""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import psutil

from kvcache.cache import KVCache
from kvcache.events import NO_LISTENER, Listener
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig, TierKind
from scheduler.errors import ModelError, NoMemoryError
from scheduler.llama import gpu
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import ContextMemory
from scheduler.llama.model import Model, num_gpu_layers
from scheduler.llama.open_tiers import Tiers, open_tiers
from scheduler.llama.opener import ContextKind, ContextOpener
from scheduler.llama.proof import Flaws, KVFacts, Moves, measure, prove, prove_moves
from scheduler.llama.proven import Proven
from scheduler.llama.trial import TrialError
from scheduler.plan import MAX_DRAFTED
from scheduler.planner import MAX_SCORED_TOKENS
from scheduler.shapes import LaneShapes
from scheduler.sizing import GIB, Machine, Sizes, available_bytes, choose

_log = logging.getLogger("cortex.engine")

ONE_AT_A_TIME: Final = {"plamo2"}
"""Architectures whose sequences must not be computed together, because llama.cpp aborts the process. No proof can be
tried then. PLaMo 2: it writes the states of several sequences beyond the end of their memory (llama-cpp-python 0.3.36).
"""


@dataclass(frozen=True, slots=True)
class KVPlace:
    """The memory that has the KV: of the machine, or of its GPUs."""

    available: Callable[[], int]
    """Returns the bytes that the engine may use of it now."""
    total_bytes: int


def kv_memory(config: EngineConfig, model: Model) -> KVPlace:
    """Each layer has its KV where its weights are. If only some layers are on a GPU, it limits the KV of all."""
    num_layers = num_gpu_layers(config.gpu_layers, model.num_layers)
    if not num_layers:
        return KVPlace(partial(available_bytes, config), psutil.virtual_memory().total)
    share = num_layers / model.num_layers
    return KVPlace(lambda: int(gpu.memory().free / share), int(gpu.memory().total / share))


@dataclass(frozen=True, slots=True)
class Device:
    """The KV memory with its sizes, its cache and its tiers."""

    sizes: Sizes
    context: Context
    memory: ContextMemory
    cache: KVCache
    tiers: Tiers
    opener: ContextOpener

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV memory at the start."""
        return self.opener.num_bytes(self.sizes.shapes.start)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes, and what was proven to work with them."""

    config: EngineConfig
    sizes: Sizes
    facts: KVFacts
    moves: Moves
    sharing: bool


def open_device(config: EngineConfig, model: Model, listener: Listener = NO_LISTENER) -> Device:
    """Opens the KV memory. `listener` gets the pages of its cache and of the tiers.

    Raises ModelError with one line for the user if llama.cpp cannot compute the model.
    """
    try:
        return _open(_plan(config, model, measure(model, config)), model, listener)
    except TrialError as error:
        raise ModelError(f"{config.model_path}: llama.cpp does not compute this model correctly: {error}") from error


def _plan(config: EngineConfig, model: Model, facts: KVFacts) -> _Plan:
    """Returns the first plan that passes its proof."""
    why_pool = ""
    if config.kv_layout == "auto" and not model.shares_prefixes:
        why_pool = "the model has a recurrent state, not only KV cells"
    if model.architecture in ONE_AT_A_TIME:
        config = _one_at_a_time(config, "llama.cpp aborts if it computes several sequences of this architecture")
        why_pool = "only one sequence is computed at a time"
    sizes = _sizes(config, model, facts, why_pool)
    proven = Proven(config, repacked=model.is_repacked)
    while True:
        in_lanes, together = sizes.layout == "lanes", sizes.max_seqs > 1
        proof = f"{sizes.layout}{'' if together else '-alone'}"
        moves = _saved_moves(proven, proof, facts)
        try:
            flaws = Flaws() if moves else prove(model, config, facts, lanes=in_lanes, together=together)
        except TrialError as error:
            if not in_lanes:
                raise
            flaws = Flaws(together=str(error))
        if in_lanes and (reason := flaws.together or flaws.sharing):
            why_pool = f"lanes do not work with this model: {reason}"
            _log.warning("the KV layout is pool: %s", why_pool)
        elif flaws.together:
            config = _one_at_a_time(config, flaws.together)
        else:
            if flaws.sharing:
                _log.warning("sequences share no prefixes: %s", flaws.sharing)
            sharing = model.shares_prefixes and not flaws.sharing
            if moves is None:
                moves = prove_moves(model, config, facts, lanes=in_lanes, sharing=sharing)
                is_best = moves.kind == "pages" or (moves.kind == "sequences" and facts.format is None)
                if is_best and not flaws.sharing:  # what fails, such as for lack of memory, is tried again
                    proven.save(proof, {"kind": moves.kind, "reason": moves.reason})
            sizes = _sizes(config, model, facts, why_pool, moves=moves.kind, sharing=sharing)
            if in_lanes == (sizes.layout == "lanes"):
                _refuse_without_memory(config, model, sizes.kv_tokens * facts.bytes_per_token)
                return _Plan(config, sizes, facts, moves, sharing)
            why_pool = sizes.layout_reason
            continue
        sizes = _sizes(config, model, facts, why_pool)


def _saved_moves(proven: Proven, proof: str, facts: KVFacts) -> Moves | None:
    """Returns which KV can be moved in a layout that has passed its proof at an earlier start; None if it has not."""
    match proven.load(proof):
        case {"kind": "pages"} if facts.format is not None:
            return Moves("pages", format=facts.format)
        case {"kind": "sequences", "reason": str(reason)} if facts.format is None:
            return Moves("sequences", " ".join(reason.split()))
    return None


def _one_at_a_time(config: EngineConfig, reason: str) -> EngineConfig:
    _log.warning("one sequence is computed at a time: %s", reason)
    return dataclasses.replace(config, max_seqs=1)


def _sizes(
    config: EngineConfig,
    model: Model,
    facts: KVFacts,
    why_pool: str,
    *,
    moves: TierKind = "pages",
    sharing: bool | None = None,
) -> Sizes:
    if why_pool:
        config = dataclasses.replace(config, kv_layout="pool")
    machine = Machine(
        trained_context=model.trained_context,
        model_bytes=model.num_bytes,
        kv_bytes_per_token=facts.bytes_per_token,
        on_gpu=num_gpu_layers(config.gpu_layers, model.num_layers) > 0,
        available_bytes=kv_memory(config, model).available(),
        shares_ids=model.shares_prefixes if sharing is None else sharing,
        original_context=model.original_context,
        rescales=model.rescales,
        moves=moves,
    )
    sizes = choose(config, machine)
    return dataclasses.replace(sizes, layout_reason=why_pool) if why_pool else sizes


def _refuse_without_memory(config: EngineConfig, model: Model, kv_bytes: int) -> None:
    """Raises NoMemoryError if weights and KV do not fit into the memory of this machine."""
    if num_gpu_layers(config.gpu_layers, model.num_layers):
        return
    available = available_bytes(config)
    if missing := max(0, model.mapped_bytes + kv_bytes - available):
        needs = (
            f"{model.num_bytes / GIB:.1f} GiB of memory for its weights and {kv_bytes / GIB:.1f} GiB for its KV cache"
        )
        reason = f"it would take {needs}, but only {available / GIB:.1f} GiB are available"
        raise NoMemoryError(f"{config.model_path}: {reason}", missing)


def _open(plan: _Plan, model: Model, listener: Listener) -> Device:
    sizes, in_lanes = plan.sizes, plan.sizes.layout == "lanes"
    longest = sizes.shapes.max_lane if isinstance(sizes.shapes, LaneShapes) else sizes.kv_max
    is_stretched = longest > model.original_context
    tiers = open_tiers(plan.config, model, plan.moves, is_stretched=is_stretched, listener=listener)
    max_cached = sizes.idle_tokens // PAGE_TOKENS if tiers.kind == "pages" else None
    kind = ContextKind(
        in_lanes=in_lanes,
        num_outputs=sizes.max_seqs + max(MAX_SCORED_TOKENS, MAX_DRAFTED),
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        window=plan.facts.window if plan.sharing else 0,
        form=plan.moves.format,
        bytes_per_token=plan.facts.bytes_per_token,
        bytes_per_id=plan.facts.bytes_per_id,
        keeps_evicted=tiers.kind != "none",
        max_cached=max_cached,
    )
    opener = ContextOpener(model, plan.config, kind)
    context, memory, layout = opener.open_now(sizes.shapes.start)
    cache = KVCache(memory, layout, tiers.host, sharing=plan.sharing, listener=listener)
    return Device(sizes, context, memory, cache, tiers, opener)
