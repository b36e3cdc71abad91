"""Where pages go that leave the device: whether they can be moved, how much room there is, and its name."""

import logging
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from kvcache.disk import DiskTier
from kvcache.tiers import HostTier
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.llama import LLAMA_CPP_VERSION, Model
from scheduler.memory import ContextMemory
from scheduler.sizing import disk_bytes, host_bytes
from scheduler.state import StateError

_log = logging.getLogger("cortex.engine")

SAMPLED_BYTES: Final = 1 << 20
NUM_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class Tiers:
    host: HostTier
    host_bytes: int
    disk_bytes: int


def open_tiers(config: EngineConfig, model: Model, memory: ContextMemory) -> Tiers | None:
    """None where pages may or can not be kept; says why in the log."""
    in_memory = host_bytes(config)
    if not in_memory:
        if config.disk_cache:
            _log.warning("no pages are kept on the disk: they go there through host memory, which is given none")
        return None
    try:
        memory.learn()
    except StateError as error:
        _log.warning("evicted pages are not kept: this model's state cannot be cut into pages: %s", error)
        return None
    disk, on_disk = None, 0
    if config.disk_folder:
        folder = Path(config.disk_folder)
        on_disk = disk_bytes(config, folder)
        try:
            disk = DiskTier(folder, version_of(config, model), on_disk) if on_disk else None
        except OSError as error:
            _log.warning("no pages are kept on the disk: %s", error)
            on_disk = 0
    return Tiers(HostTier(in_memory, disk), in_memory, on_disk)


def version_of(config: EngineConfig, model: Model) -> str:
    """A name for all that pages depend on: the model file, the settings that change KV, and llama.cpp."""
    path = Path(config.model_path)
    size = path.stat().st_size
    digest = blake2b(repr((size, model.vocab_size, PAGE_TOKENS, LLAMA_CPP_VERSION)).encode(), digest_size=16)
    settings = asdict(config)
    digest.update(repr([settings[name] for name in ("kv_type", "flash_attn")]).encode())
    with path.open("rb") as file:  # all of a large file would take too long
        for index in range(NUM_SAMPLES):
            file.seek(index * max(0, size - SAMPLED_BYTES) // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()
