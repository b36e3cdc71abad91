"""Opens the host tier and the disk tier of a model, if its KV can be moved and there is room."""

import logging
from dataclasses import dataclass
from pathlib import Path

from kvcache.disk import DiskTier
from kvcache.pages import PageTier
from kvcache.tier import Tier
from kvcache.whole import WholeTier
from scheduler.config import EngineConfig
from scheduler.llama.context import Model
from scheduler.llama.kv_memory import ContextMemory
from scheduler.llama.state import StateError
from scheduler.llama.version import version_of
from scheduler.sizing import disk_bytes, host_bytes

_log = logging.getLogger("cortex.engine")


@dataclass(frozen=True, slots=True)
class Tiers:
    host: Tier
    host_bytes: int
    disk_bytes: int


def open_tiers(config: EngineConfig, model: Model, memory: ContextMemory) -> Tiers | None:
    """Returns the tiers, for pages or else for whole sequences.

    Returns None if the host tier has size 0 or if the KV of this model cannot be moved. Logs the reason.
    """
    in_memory = host_bytes(config)
    if not in_memory:
        if config.disk_cache:
            _log.warning("no disk tier: it needs a host tier, whose size is 0")
        return None
    try:
        memory.learn(pages=model.shares_prefixes)
    except StateError as error:
        _log.warning("evicted pages are not kept, because this model's state cannot be moved: %s", error)
        return None
    disk, on_disk = None, 0
    if config.disk_folder:
        folder = Path(config.disk_folder)
        on_disk = disk_bytes(config, folder)
        try:
            disk = DiskTier(folder, version_of(config, model), on_disk) if on_disk else None
        except OSError as error:
            _log.warning("no disk tier: %s", error)
            on_disk = 0
    kind = PageTier if memory.moves_pages else WholeTier
    return Tiers(kind(in_memory, disk), in_memory, on_disk)
