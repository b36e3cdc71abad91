"""The interface of a tier: memory outside of the device, from which KV is loaded instead of computed."""

from dataclasses import dataclass
from typing import Final, Protocol

from kvcache.memory import Memory
from kvcache.tree import NOTHING_STORED, Hit, KVHandle, Stored


@dataclass(frozen=True, slots=True)
class TierStatistics:
    host_bytes: int = 0
    host_pages: int = 0
    """Counts whole sequences instead, like `disk_pages`, if states cannot be cut."""
    disk_bytes: int = 0
    disk_pages: int = 0


class Tier(Protocol):
    """Keeps KV, found by its tokens: pages (`kvcache.pages`) or whole sequences (`kvcache.whole`)."""

    def find(self, tokens: bytes, hit: Hit) -> Stored:
        """Returns the stored KV of a prefix of `tokens`. The hit is the part that is already resident.

        The result may end before the hit does; it is then of no use. Starts to read pages that only the disk has.
        """

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None:
        """Copy the part of the handle after its first `num_kept` tokens.

        Skips leading pages that other handles hold or that the tier has already. A tier of whole sequences copies all
        of the handle.
        """

    def wait(self) -> None:
        """Waits a short time for the pages that are being read from the disk."""

    def close(self, seconds: float) -> None:
        """Write to the disk, most recently used first, for at most about `seconds`."""

    def statistics(self) -> TierStatistics: ...

    def check_integrity(self) -> None:
        """Recount. Raises AssertionError if the accounting is wrong."""


class NoTier:
    """Keeps nothing. Pages evicted from the device are lost."""

    def find(self, tokens: bytes, hit: Hit) -> Stored:  # noqa: ARG002
        return NOTHING_STORED

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None: ...

    def wait(self) -> None: ...

    def close(self, seconds: float) -> None: ...

    def statistics(self) -> TierStatistics:
        return TierStatistics()

    def check_integrity(self) -> None: ...


NO_TIER: Final = NoTier()
