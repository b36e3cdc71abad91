"""Default sizes for options that the user did not set, from the model and the machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.machine import cores

DEFAULT_CTX_LEN: Final = 8192
DEFAULT_BATCH_TOKENS: Final = 512
IDLE_SHARE: Final = 0.7
"""Size of a default pool, in bytes of KV per byte of weights. If such a pool is full of idle pages, a decode step takes
about 15% longer, because on a CPU every step reads the weights and the mask of every used cell. With 77 MiB of KV and
92 MiB of weights (0.8), six runs measured 10% to 27%, with a median of 16%."""
TIERED_IDLE_SHARE: Final = 0.1
"""Limit of idle pages in the same unit if evicted pages go to a tier. It costs about 2% of a step, scaled from above.
Loading a page costs once, an idle page costs in every step. So on a CPU a page is worth keeping for few steps only."""
TILE_TOKENS: Final = 64
"""From this number of tokens on, llama.cpp's flash attention on a CPU computes blocks of that many rows over all cells
that any row of the block needs. Answers of many sequences in one block need nearly all used cells. 24 answers and 64
tokens of a prompt took 520 ms in one step, but 137 ms and about 250 ms in separate steps."""
MEMORY_SHARE: Final = 0.5
"""Share of the available memory that KV memory takes at most, if the user set no size."""
HOST_SHARE: Final = 0.25
DISK_SHARE: Final = 0.1
MAX_TIER_BYTES: Final = 8 << 30
"""Default limits of the tiers: a share of the available memory, a share of the free disk, and this many bytes each."""


GIB: Final = 1 << 30

Layout = Literal["pool", "lanes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    ctx_len: int
    max_seqs: int
    kv_tokens: int
    idle_tokens: int
    """Tokens of KV memory that idle pages may fill before they go to a tier, if there is one. On a GPU, no limit."""
    batch_tokens: int
    layout: Layout
    layout_reason: str
    max_mixed_tokens: int
    """Maximum tokens of a step that computes prompts and answers together."""
    max_answers: int
    """Maximum tokens of answers in a step."""
    threads: int


def choose(
    config: EngineConfig, *, trained_context: int, model_bytes: int, kv_bytes_per_token: int, on_gpu: bool
) -> Sizes:
    """Returns the configured sizes, with defaults for the options that are None. `kv_tokens` limits the context."""
    ctx_len = config.ctx_len or min(DEFAULT_CTX_LEN, trained_context or DEFAULT_CTX_LEN)
    max_seqs = config.max_seqs or (64 if on_gpu else 32)
    batch_tokens = max(config.batch_tokens or DEFAULT_BATCH_TOKENS, max_seqs + 64)
    lane_tokens = _lane(-(-config.kv_tokens // max_seqs) if config.kv_tokens else ctx_len)
    layout, reason = _layout(config, ctx_len, lane_tokens, max_seqs * lane_tokens * kv_bytes_per_token, on_gpu)
    if layout == "lanes":
        kv_tokens = max_seqs * lane_tokens
        ctx_len = min(ctx_len, lane_tokens)
    else:
        kv_tokens = _whole_pages(
            config.kv_tokens or _pool(ctx_len, max_seqs, model_bytes, kv_bytes_per_token, available_bytes(config))
        )
    tiled = not on_gpu and layout == "pool" and config.flash_attn != "off" and config.kv_type in {"f16", "f32"}
    return Sizes(
        ctx_len=min(ctx_len, kv_tokens),
        max_seqs=max_seqs,
        kv_tokens=kv_tokens,
        idle_tokens=kv_tokens if on_gpu else int(TIERED_IDLE_SHARE * model_bytes / max(1, kv_bytes_per_token)),
        batch_tokens=batch_tokens,
        layout=layout,
        layout_reason=reason,
        max_mixed_tokens=0 if layout == "lanes" else TILE_TOKENS - 1 if tiled else batch_tokens,
        max_answers=TILE_TOKENS - 1 if tiled else batch_tokens,
        threads=config.threads or cores(),
    )


def available_bytes(config: EngineConfig) -> int:
    """Returns the bytes of memory that this engine may use."""
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


def _layout(config: EngineConfig, ctx_len: int, lane_tokens: int, lane_bytes: int, on_gpu: bool) -> tuple[Layout, str]:
    """Returns the layout and the reason for it. Lanes are faster if there is memory for a lane per sequence."""
    if config.kv_layout == "lanes":
        return "lanes", "as configured"
    if config.kv_layout == "pool":
        return "pool", "as configured"
    if on_gpu:
        return "pool", "on a GPU memory is scarce, and idle cells cost little"
    if config.host_cache == 0:
        return "pool", "without a host tier, only a pool can keep idle pages"
    if lane_tokens < ctx_len:
        return "pool", f"--kv-tokens is less than a context of {ctx_len} tokens for each sequence"
    available = available_bytes(config)
    share = f"{lane_bytes / GIB:.1f} GiB, a context for each sequence"
    if lane_bytes > MEMORY_SHARE * available:
        return "pool", f"lanes would take {share}, more than half of the {available / GIB:.1f} GiB available"
    return "lanes", share


def _lane(num_tokens: int) -> int:
    """Rounds up to a multiple of 256 cells, as llama.cpp does with lanes."""
    return -(-num_tokens // 256) * 256


def _pool(ctx_len: int, max_seqs: int, model_bytes: int, kv_bytes_per_token: int, available: int) -> int:
    """Returns the size of a pool in tokens: two contexts, or more if IDLE_SHARE allows it, within MEMORY_SHARE.

    The size is at least one context and at most one context per sequence. A recurrent model gets the maximum, because
    its tokens take no memory.
    """
    kv_bytes_per_token = max(1, kv_bytes_per_token)
    cheap = int(IDLE_SHARE * model_bytes / kv_bytes_per_token)
    affordable = int(MEMORY_SHARE * available / kv_bytes_per_token)
    wanted = min(max(2 * ctx_len, cheap), max(2, max_seqs) * ctx_len)
    return max(min(wanted, affordable), ctx_len)


def _whole_pages(num_tokens: int) -> int:
    """Rounds up to 256 cells like llama.cpp, so that all cells are used. Rounds less than 256 up to whole pages."""
    return -(-num_tokens // 256) * 256 if num_tokens >= 256 else -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS
