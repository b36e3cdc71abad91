"""The EngineInfo of a loaded model, which the engine sends to the API."""

import os
import time

from scheduler.config import EngineConfig, EngineInfo
from scheduler.llama.device import Device
from scheduler.llama.draft_model import OpenedDrafts
from scheduler.llama.model import Model, num_gpu_layers
from scheduler.texts import Limits


def generator_info(
    config: EngineConfig, model: Model, device: Device, pooling: str, drafts: OpenedDrafts | None, started: float
) -> EngineInfo:
    """Returns the info of a model that generates text. `started`: time.monotonic() when loading began."""
    embeds = pooling != "none"
    sizes, tiers = device.sizes, device.tiers
    return EngineInfo(
        pid=os.getpid(),
        description=model.description,
        ctx_len=sizes.ctx_len,
        max_seqs=sizes.max_seqs,
        kv_tokens=sizes.kv_tokens,
        kv_bytes=device.kv_bytes,
        kv_max=sizes.kv_max,
        kv_layout=sizes.layout,
        kv_layout_reason=sizes.layout_reason,
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        host_cache=tiers.host_bytes,
        disk_cache=tiers.disk_bytes,
        tier=tiers.kind,
        gpu_layers=num_gpu_layers(config.gpu_layers, model.num_layers),
        load_seconds=round(time.monotonic() - started, 3),
        mapped_bytes=model.mapped_bytes + (drafts.mapped_bytes if drafts is not None else 0),
        draft_model=drafts.description if drafts is not None else "",
        pooling=pooling,
        embedding_size=model.embedding_size if embeds else 0,
        max_text_tokens=sizes.ctx_len if embeds else 0,
    )


def encoder_info(
    config: EngineConfig, model: Model, limits: Limits, threads: int, pooling: str, started: float
) -> EngineInfo:
    """Returns the info of a model that generates no text. `started`: time.monotonic() when loading began."""
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
        mapped_bytes=model.mapped_bytes,
        pooling=pooling,
        embedding_size=model.num_scores if pooling == "rank" else model.embedding_size,
        max_text_tokens=limits.max_text_tokens,
    )
