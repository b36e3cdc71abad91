"""Bodies that an operation reads itself, or whose bytes it takes from the disk."""

from dataclasses import dataclass
from typing import Protocol, Self


class IncomingBody(Protocol):
    """The body of a request, read piece by piece. The client sends no faster than it is read."""

    @property
    def content_type(self) -> str: ...

    @property
    def length(self) -> int | None:
        """Bytes, as the client says; None if it does not say it."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> bytes: ...


class Pieces(Protocol):
    """The bytes of an answer. Closed when the answer is over."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that is a file of a client."""

    data: Pieces
    num_bytes: int
    filename: str
    """As its owner wrote it."""
