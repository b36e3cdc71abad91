"""Default sizes for options that the user did not set, from the model and the machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from scheduler.config import EngineConfig, TierKind
from scheduler.errors import ModelError
from scheduler.machine import cores
from scheduler.pacing import MIN_CHUNK
from scheduler.shapes import (
    CELLS,
    MAX_SEQUENCE_IDS,
    MIN_LANE,
    START_LANES,
    START_TOKENS,
    LaneShapes,
    PoolShapes,
    Shape,
    whole_cells,
    whole_pages,
)

DEFAULT_CTX_LEN: Final = 8192
DEFAULT_BATCH_TOKENS: Final = 512
GPU_BATCH_TOKENS: Final = 2048
"""On an H100, 2,048 tokens of a prompt take 37 ms in one step and 57 ms in four."""
IDLE_SHARE: Final = 0.7
"""Size of a default pool, in bytes of KV per byte of weights. If such a pool is full of idle pages, a decode step takes
about 15% longer, because on a CPU every step reads the weights and the mask of every used cell. With 77 MiB of KV and
92 MiB of weights (0.8), six runs measured 10% to 27%, with a median of 16%."""
TIERED_IDLE_SHARE: Final = 0.1
"""Limit of idle pages in the same unit if evicted pages go to a tier. It costs about 2% of a step, scaled from above.
On a GPU, idle pages of four times the weights cost 10% to 30% of a step, so IDLE_SHARE is used there. Loading a page
costs once, an idle page costs in every step. So on a CPU a page is worth keeping for few steps only."""
GPU_CHUNK: Final = 512
"""Tokens of a prompt that have about the full speed on a GPU. On an H100, 64, 512 and 2,048 take 6, 11 and 37 ms."""
TILE_TOKENS: Final = 64
"""From this number of tokens on, llama.cpp's flash attention on a CPU computes blocks of that many rows over all cells
that any row of the block needs. Answers of many sequences in one block need nearly all used cells. 24 answers and 64
tokens of a prompt took 520 ms in one step, but 137 ms and about 250 ms in separate steps."""
MIN_LANES: Final = 8
"""Lanes need memory for this many whole contexts. Then even a sequence that needs a whole context, and makes all lanes
as long, leaves room for as many sequences as a CPU needs for most of its throughput: with a model of 135M, 4 lanes give
0.81 and 16 lanes 0.99 of the tokens per second of 32."""
START_STATES: Final = 4
"""Sequence ids of a model with recurrent states at the start."""
MEMORY_SHARE: Final = 0.5
"""Share of the available memory that KV memory takes at most, if the user set no size."""
HOST_SHARE: Final = 0.25
DISK_SHARE: Final = 0.1
MAX_TIER_BYTES: Final = 8 << 30
"""Default limits of the tiers: a share of the available memory, a share of the free disk, and this many bytes each."""


GIB: Final = 1 << 30

Layout = Literal["pool", "lanes"]

UNQUANTIZED: Final = ("f16", "bf16", "f32")
"""Number formats of KV that llama.cpp computes without flash attention."""


@dataclass(frozen=True, slots=True)
class Sizes:
    ctx_len: int
    max_seqs: int
    shapes: LaneShapes | PoolShapes
    """The sizes of the KV memory: at the start, and at most. If they are equal, it stays as it is."""
    idle_tokens: int
    """Tokens of a pool that idle pages may fill before they go to a tier, if there is one."""
    batch_tokens: int
    layout: Layout
    layout_reason: str
    max_mixed_tokens: int
    """Maximum tokens of a step that computes prompts and answers together."""
    max_answers: int
    """Maximum tokens of answers in a step."""
    full_speed_tokens: int
    """A chunk of so many tokens of a prompt has about the full speed."""
    threads: int

    @property
    def kv_tokens(self) -> int:
        """Tokens of the KV memory at the start."""
        return self.shapes.start.tokens

    @property
    def kv_max(self) -> int:
        """Tokens of the KV memory at most."""
        return self.shapes.max_tokens


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model needs on this machine."""

    trained_context: int
    model_bytes: int
    kv_bytes_per_token: int
    on_gpu: bool
    available_bytes: int
    """Memory for KV: of the machine, or of its GPUs."""
    shares_ids: bool = True
    """Whether sequence ids cost no memory. With recurrent states, each id has one."""
    original_context: int = 1 << 30
    """Some models compute other KV in a context that is longer than this. So the size must not change across it."""
    rescales: bool = False
    """Whether the model's file names an original context, so that this probably is such a model."""
    moves: TierKind = "pages"
    """Which KV can be moved. If none can, the size must not change."""


def check_kv(config: EngineConfig) -> None:
    """Raises ModelError if the options of the KV memory contradict each other."""
    if config.flash_attn == "off" and config.kv_type not in UNQUANTIZED:
        raise ModelError(f"--kv-type {config.kv_type} needs flash attention, so it allows no --flash-attn off")
    if config.kv_tokens and (config.kv_start or config.kv_max):
        raise ModelError("--kv-tokens is a fixed size of the KV cache, so it allows no --kv-start and no --kv-max")
    if config.kv_start and config.kv_max and config.kv_start > config.kv_max:
        raise ModelError(f"--kv-start ({config.kv_start}) must not be more than --kv-max ({config.kv_max})")


def choose(config: EngineConfig, machine: Machine) -> Sizes:
    """Returns the configured sizes, with defaults for the options that are None. The KV memory limits the context."""
    ctx_len = config.ctx_len or min(DEFAULT_CTX_LEN, machine.trained_context or DEFAULT_CTX_LEN)
    max_seqs = config.max_seqs or (64 if machine.on_gpu else 32)
    on_gpu, affordable = machine.on_gpu, _affordable(config, machine)
    batch_tokens = max(config.batch_tokens or (GPU_BATCH_TOKENS if on_gpu else DEFAULT_BATCH_TOKENS), max_seqs + 64)
    layout, reason = _layout(config, machine, ctx_len, max_seqs, affordable)
    shapes: LaneShapes | PoolShapes
    if layout == "lanes":
        shapes = _lanes(config, machine, ctx_len, max_seqs, affordable)
        ctx_len = min(ctx_len, shapes.max_lane)
    else:
        shapes = _pool(config, machine, ctx_len, max_seqs, affordable)
        ctx_len = min(ctx_len, shapes.max_tokens)
    tiled = not on_gpu and layout == "pool" and config.flash_attn != "off" and config.kv_type in {"f16", "f32"}
    idle_share = IDLE_SHARE if on_gpu else TIERED_IDLE_SHARE
    return Sizes(
        ctx_len=ctx_len,
        max_seqs=max_seqs,
        shapes=shapes,
        idle_tokens=int(idle_share * machine.model_bytes / max(1, machine.kv_bytes_per_token)),
        batch_tokens=batch_tokens,
        layout=layout,
        layout_reason=reason,
        max_mixed_tokens=0 if layout == "lanes" else TILE_TOKENS - 1 if tiled else batch_tokens,
        max_answers=TILE_TOKENS - 1 if tiled else batch_tokens,
        full_speed_tokens=GPU_CHUNK if on_gpu else MIN_CHUNK,
        threads=config.threads or cores(),
    )


def _affordable(config: EngineConfig, machine: Machine) -> int:
    """Returns the tokens that the KV memory may have at most, if the user gave no fixed size."""
    if config.kv_max:
        return config.kv_max
    return int(MEMORY_SHARE * machine.available_bytes / max(1, machine.kv_bytes_per_token))


def available_bytes(config: EngineConfig) -> int:
    """Returns the bytes of the machine's memory that this engine may use."""
    return max(0, psutil.virtual_memory().available - config.others_bytes)


def host_bytes(config: EngineConfig) -> int:
    """Returns the size of the host tier in bytes."""
    if config.host_cache is not None:
        return config.host_cache
    return min(MAX_TIER_BYTES, int(HOST_SHARE * available_bytes(config)))


def disk_bytes(config: EngineConfig, folder: Path) -> int:
    """Returns the size in bytes of a disk tier in `folder`, which need not exist yet."""
    if config.disk_cache is not None:
        return config.disk_cache
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return min(MAX_TIER_BYTES, int(DISK_SHARE * shutil.disk_usage(there).free))


def _layout(config: EngineConfig, machine: Machine, ctx_len: int, max_seqs: int, affordable: int) -> tuple[Layout, str]:
    """Returns the layout and the reason for it. Lanes are faster, but all are as long as the longest one.

    Decode steps of 1, 8, 32 and 64 sequences on an H100 take 1.2, 1.8, 4.6 and 6.3 ms in lanes, but 1.1, 1.8, 6.1 and
    14.9 ms in a pool, and 28 ms with 65,536 idle tokens in it.
    """
    if config.kv_layout == "lanes":
        return "lanes", "as configured"
    if config.kv_layout == "pool":
        return "pool", "as configured"
    if config.host_cache == 0:
        return "pool", "without a host tier, only a pool can keep idle pages"
    if machine.moves == "none":
        return "pool", "pages evicted from lanes could not be kept"
    lane = whole_cells(ctx_len)
    if config.kv_tokens:
        if config.kv_tokens < max_seqs * ctx_len:
            return "pool", f"--kv-tokens is less than a context of {ctx_len} tokens for each sequence"
        return "lanes", "--kv-tokens has a context for each sequence"
    num_lanes, needed = affordable // lane, max_seqs if machine.moves == "sequences" else min(MIN_LANES, max_seqs)
    if num_lanes < needed:
        return "pool", f"there is memory for {num_lanes} contexts of {ctx_len} tokens, and lanes need {needed}"
    return "lanes", f"there is memory for {num_lanes} contexts of {ctx_len} tokens, and lanes need {needed}"


def _lanes(config: EngineConfig, machine: Machine, ctx_len: int, max_seqs: int, affordable: int) -> LaneShapes:
    if config.kv_tokens:
        lane = whole_cells(-(-config.kv_tokens // max_seqs))
        return LaneShapes(Shape(max_seqs, max_seqs * lane), max_seqs, lane, max_seqs * lane)
    longest = whole_cells(ctx_len)
    if config.kv_max:
        longest = min(longest, max(config.kv_max // CELLS, 1) * CELLS)
    max_tokens = min(max(affordable // longest, 1), max_seqs) * longest
    if machine.moves == "none":
        return LaneShapes(Shape(max_tokens // longest, max_tokens), max_tokens // longest, longest, max_tokens)
    start = config.kv_start or START_LANES * START_TOKENS
    least = START_LANES
    if machine.moves == "sequences":  # a state of a whole sequence can be loaded only into as many lanes
        least = max_tokens // longest
    lane = min(START_TOKENS, longest, whole_cells(start // least))
    if longest > machine.original_context:
        lane = longest
    ids = min(max((config.kv_start or 0) // lane, least), max_seqs, max_tokens // lane)
    if machine.moves == "sequences":
        return LaneShapes(Shape(least, least * lane), least, longest, max_tokens)
    shortest = lane if longest > machine.original_context else min(MIN_LANE, lane)
    return LaneShapes(Shape(ids, ids * lane), max_seqs, longest, max_tokens, shortest)


def _pool(config: EngineConfig, machine: Machine, ctx_len: int, max_seqs: int, affordable: int) -> PoolShapes:
    """Returns the shapes of a pool. One of fixed size has two contexts, or more if IDLE_SHARE allows it.

    Without a given size, it has at least one context. It has at most one context per sequence. A recurrent model gets
    the maximum, because its tokens take no memory.
    """
    ids = MAX_SEQUENCE_IDS if machine.shares_ids else max(2, max_seqs)
    most = max(2, max_seqs) * ctx_len
    is_fixed = machine.moves == "none" or (machine.rescales and most > machine.original_context)
    if config.kv_tokens:
        max_tokens, is_fixed = config.kv_tokens, True
    elif config.kv_max:
        max_tokens = min(most, config.kv_max)
    elif is_fixed:
        cheap = int(IDLE_SHARE * machine.model_bytes / max(1, machine.kv_bytes_per_token))
        max_tokens = max(min(max(2 * ctx_len, cheap), most, affordable), ctx_len)
    else:
        max_tokens = max(min(most, affordable), ctx_len)
    max_tokens = whole_pages(max_tokens)
    if is_fixed:
        return PoolShapes(Shape(ids, max_tokens), max_seqs, max_tokens)
    start = (config.kv_start or START_LANES * min(START_TOKENS, ctx_len)) if machine.kv_bytes_per_token else max_tokens
    if not machine.shares_ids:
        ids = min(ids, START_STATES)
    return PoolShapes(Shape(ids, min(whole_pages(start), max_tokens)), max_seqs, max_tokens)
