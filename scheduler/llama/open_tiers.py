"""Opens the host tier and the disk tier of a model, if its KV can be moved and there is room."""

import logging
from dataclasses import dataclass
from pathlib import Path

from kvcache.disk import DiskTier
from kvcache.events import Listener
from kvcache.pages import PageTier
from kvcache.tier import NO_TIER, Tier
from kvcache.whole import WholeTier
from scheduler.config import EngineConfig, TierKind
from scheduler.llama.model import Model
from scheduler.llama.proof import Moves
from scheduler.llama.version import version_of
from scheduler.sizing import disk_bytes, host_bytes

_log = logging.getLogger("cortex.engine")


@dataclass(frozen=True, slots=True)
class Tiers:
    host: Tier = NO_TIER
    host_bytes: int = 0
    disk_bytes: int = 0
    kind: TierKind = "none"
    """What they move."""


def open_tiers(config: EngineConfig, model: Model, moves: Moves, *, is_stretched: bool, listener: Listener) -> Tiers:
    """Returns the tiers for what can be moved: pages or whole sequences. `is_stretched`: see `Context`.

    Returns tiers that keep nothing if the host tier has size 0 or if the KV of this model cannot be moved. Logs what
    was replaced, and why. `listener` gets the pages of the tiers.
    """
    in_memory = host_bytes(config)
    if not in_memory:
        if config.disk_cache:
            _log.warning("no disk tier: it needs a host tier, whose size is 0")
        return Tiers()
    if moves.kind == "none":
        _log.warning("evicted KV is not kept, because this model's state cannot be moved: %s", moves.reason)
        return Tiers()
    if moves.reason:
        _log.info("the tiers keep whole sequences instead of pages: %s", moves.reason)
    disk, on_disk = None, 0
    if config.disk_folder:
        folder = Path(config.disk_folder)
        on_disk = disk_bytes(config, folder)
        try:
            version = version_of(config, model, is_stretched=is_stretched)
            disk = DiskTier(folder, version, on_disk, listener) if on_disk else None
        except OSError as error:
            _log.warning("no disk tier: %s", error)
            on_disk = 0
    pages = moves.kind == "pages"
    tier = PageTier(in_memory, disk, listener) if pages else WholeTier(in_memory, disk)
    return Tiers(tier, in_memory, on_disk, moves.kind)
