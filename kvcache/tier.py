"""What the cache asks of a tier: memory behind the device, from where KV is loaded instead of computed."""

from dataclasses import dataclass
from typing import Final, Protocol

from kvcache.memory import Memory
from kvcache.tree import NOTHING_STORED, Hit, KVHandle, Stored


@dataclass(frozen=True, slots=True)
class TierStatistics:
    host_bytes: int = 0
    host_pages: int = 0
    """Or whole sequences, here and on the disk, where a state cannot be cut."""
    disk_bytes: int = 0
    disk_pages: int = 0


class Tier(Protocol):
    """Keeps KV by the tokens that it belongs to: pages (`kvcache.pages`) or whole sequences (`kvcache.whole`)."""

    def find(self, tokens: bytes, hit: Hit) -> Stored:
        """What is kept of a beginning of `tokens`, of which the hit is resident.

        Nothing longer than the hit may be found. Begins to read what only the disk has.
        """

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None:
        """Copy what nobody else holds of the handle behind its first `num_kept` tokens, unless that is here.

        Or all of the handle, where only that can be moved.
        """

    def wait(self) -> None:
        """For a moment, until all that is being read has arrived."""

    def close(self, seconds: float) -> None:
        """Bring to the disk what is worth most, as far as the time allows."""

    def statistics(self) -> TierStatistics: ...

    def check_integrity(self) -> None:
        """Recount. Raises AssertionError if the accounting is wrong."""


class NoTier:
    """Keeps nothing: what is evicted from the device is lost."""

    def find(self, tokens: bytes, hit: Hit) -> Stored:  # noqa: ARG002
        return NOTHING_STORED

    def save(self, handle: KVHandle, num_kept: int, memory: Memory) -> None: ...

    def wait(self) -> None: ...

    def close(self, seconds: float) -> None: ...

    def statistics(self) -> TierStatistics:
        return TierStatistics()

    def check_integrity(self) -> None: ...


NO_TIER: Final = NoTier()
