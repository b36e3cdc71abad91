"""The interface through which the cache reports the pages that it has: stored and removed, with the place.

Only full pages are reported that every sequence of the same salt can find: not tails, not private pages, and not the
whole sequences of models whose state cannot be cut.
"""

from enum import StrEnum
from typing import Final, NamedTuple, Protocol


class Medium(StrEnum):
    """The places where a page can be, by the words that routers know. A page can be in several places at once."""

    GPU = "GPU"
    """The KV memory, on any device."""
    CPU = "CPU"
    """The host tier."""
    DISK = "DISK"
    """The disk tier, as far as this process knows it."""


class Block(NamedTuple):
    """A full page, as it is reported."""

    digest: bytes
    """Identifies its tokens, all tokens before it and the salt, also after a restart."""
    parent: bytes | None
    """The digest of the page before it; None for the first one of a sequence."""
    tokens: bytes
    """Little-endian int32."""


class Listener(Protocol):
    """Gets each change of the pages, in order for each medium.

    The thread of the disk tier calls it too. A method must return at once and raise nothing.
    """

    def stored(self, medium: Medium, block: Block) -> None:
        """The page was not at this place before."""

    def removed(self, medium: Medium, digest: bytes) -> None:
        """The page was at this place before."""


class NoListener:
    """Ignores everything."""

    def stored(self, medium: Medium, block: Block) -> None: ...

    def removed(self, medium: Medium, digest: bytes) -> None: ...


NO_LISTENER: Final = NoListener()
