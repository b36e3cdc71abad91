"""The EngineInfo of a loaded model, which the engine sends to the API."""

import os
import time

from scheduler.config import EngineConfig, EngineInfo
from scheduler.llama.context import Model, num_gpu_layers
from scheduler.llama.open_tiers import Tiers
from scheduler.sizing import Sizes
from scheduler.texts import Limits


def generator_info(
    config: EngineConfig, model: Model, sizes: Sizes, tiers: Tiers | None, pooling: str, started: float
) -> EngineInfo:
    """Returns the info of a model that generates text. `started`: time.monotonic() when loading began."""
    embeds = pooling != "none"
    return EngineInfo(
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
        embedding_size=model.embedding_size if embeds else 0,
        max_text_tokens=sizes.ctx_len if embeds else 0,
    )


def encoder_info(
    config: EngineConfig, model: Model, limits: Limits, threads: int, pooling: str, started: float
) -> EngineInfo:
    """Returns the info of a model that only makes embeddings. `started`: time.monotonic() when loading began."""
    return EngineInfo(
        pid=os.getpid(),
        description=model.description,
        ctx_len=limits.max_text_tokens,
        max_seqs=limits.max_texts,
        kv_tokens=0,
        kv_bytes=0,
        kv_layout="pool",
        kv_layout_reason="an encoder keeps nothing in KV memory",
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
