"""The sizes that a user left open, chosen from the model and the machine."""

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
"""Bytes of KV per byte of weights at which a pool full of idle pages costs a decode step about 15%: on a CPU every step
passes over the weights and over the mask of every used cell. With 77 MiB of KV beside 92 MiB of weights (0.8) six
runs measured 10% to 27%, in the median 16%."""
TIERED_IDLE_SHARE: Final = 0.1
"""The same where evicted pages go to a tier; scaled from the above, about 2% of a step. Coming back costs a page once,
staying idle costs in every step, so on a CPU a page is worth keeping for a few steps only."""
TILE_TOKENS: Final = 64
"""From so many tokens on, llama.cpp's flash attention on a CPU computes blocks of that many rows at once, over all
cells that any of the rows sees. Answers of many sequences in one block see nearly all that is in use: 24 of them beside
64 tokens of a prompt took 520 ms, apart 137 and about 250."""
MEMORY_SHARE: Final = 0.5
"""Of the memory that is available, at most this much goes to KV memory whose size nobody asked for."""
HOST_SHARE: Final = 0.25
DISK_SHARE: Final = 0.1
MAX_TIER_BYTES: Final = 8 << 30
"""Of the available memory and of the free disk, tiers take at most these shares, and this much each, if not told."""


GIB: Final = 1 << 30

Layout = Literal["pool", "lanes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    ctx_len: int
    max_seqs: int
    kv_tokens: int
    idle_tokens: int
    """Tokens of KV memory that idle pages may fill before they go to a tier, if there is one. On a GPU, all of it."""
    batch_tokens: int
    layout: Layout
    layout_reason: str
    max_mixed_tokens: int
    """Tokens of a step in which prompts and answers may be computed together."""
    max_answers: int
    """Answers that a step may go on with."""
    threads: int


def choose(
    config: EngineConfig, *, trained_context: int, model_bytes: int, kv_bytes_per_token: int, on_gpu: bool
) -> Sizes:
    """Fill in what the configuration leaves open. KV memory that the user gives bounds the context."""
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
    """Memory that this engine may count on."""
    return max(0, psutil.virtual_memory().available - config.others_bytes)


def host_bytes(config: EngineConfig) -> int:
    """What evicted pages may take of the host's memory."""
    if config.host_cache is not None:
        return config.host_cache
    return min(MAX_TIER_BYTES, int(HOST_SHARE * available_bytes(config)))


def disk_bytes(config: EngineConfig, folder: Path) -> int:
    """What they may take of the disk that the folder will lie on."""
    if config.disk_cache is not None:
        return config.disk_cache
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return min(MAX_TIER_BYTES, int(DISK_SHARE * shutil.disk_usage(there).free))


def _layout(config: EngineConfig, ctx_len: int, lane_tokens: int, lane_bytes: int, on_gpu: bool) -> tuple[Layout, str]:
    """Which one, and why. Lanes are faster wherever there is memory for one of each sequence."""
    if config.kv_layout == "lanes":
        return "lanes", "as asked"
    if config.kv_layout == "pool":
        return "pool", "as asked"
    if on_gpu:
        return "pool", "on a GPU memory is scarce, and idle cells cost little"
    if config.host_cache == 0:
        return "pool", "without host memory, only a pool keeps what is idle beside what runs"
    if lane_tokens < ctx_len:
        return "pool", f"--kv-tokens is less than a context of {ctx_len} tokens for each sequence"
    available = available_bytes(config)
    share = f"{lane_bytes / GIB:.1f} GiB, a context for each sequence"
    if lane_bytes > MEMORY_SHARE * available:
        return "pool", f"lanes would take {share}, more than half of the {available / GIB:.1f} GiB available"
    return "lanes", share


def _lane(num_tokens: int) -> int:
    """llama.cpp rounds lanes up to so many cells."""
    return -(-num_tokens // 256) * 256


def _pool(ctx_len: int, max_seqs: int, model_bytes: int, kv_bytes_per_token: int, available: int) -> int:
    """Two full contexts at least, more while idle pages stay cheap, never more than all sequences can use.

    Of a model whose state does not grow tokens take no memory, so that is what it gets.
    """
    kv_bytes_per_token = max(1, kv_bytes_per_token)
    cheap = int(IDLE_SHARE * model_bytes / kv_bytes_per_token)
    affordable = int(MEMORY_SHARE * available / kv_bytes_per_token)
    wanted = min(max(2 * ctx_len, cheap), max(2, max_seqs) * ctx_len)
    return max(min(wanted, affordable), ctx_len)


def _whole_pages(num_tokens: int) -> int:
    """llama.cpp rounds a context up to 256 cells; so do we, to use them all."""
    return -(-num_tokens // 256) * 256 if num_tokens >= 256 else -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS
