"""The interface of the device's KV memory."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Blob = NDArray[np.uint8]
"""KV of one page outside of the device. The format is private to the Memory; each token has the same size in bytes."""


class Memory(Protocol):
    """The cells of one llama.cpp context. Positions are half-open ranges; a stop of -1 means to the end."""

    @property
    def moves_pages(self) -> bool:
        """Whether `save` and `load` can begin at any page. If not, they move whole sequences only."""

    def intact_from(self, sequence_id: int) -> int:
        """Returns the smallest number of tokens to which the sequence can be cut, or that another one can share.

        It is 0 if all KV of the sequence is there. With sliding windows, some layers may have lost early tokens, which
        the sequence itself no longer needs.
        """

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        """Give sequence id `target`, which has no cells at these positions, the KV of `source`.

        A pool puts both ids on the same cells. Lanes copy the cells. Returns False if this is impossible; the target
        may then be damaged, and must be emptied.
        """

    def merge(self, source: int, target: int, start: int, stop: int) -> None:
        """Replace the target's KV at these positions by the equal KV of `source`. Both then use the same cells.

        Called only in a pool, and only if `intact_from(source)` is at most `start`.
        """

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        """Remove the id from its cells at these positions. A cell without ids is free.

        Returns False if this is impossible, or if the sequence cannot be continued after it: it must then be emptied. A
        removal from 0 to the end is always possible.
        """

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        """Returns a copy of these positions, one blob per page. `start` is a page boundary. The last page may be short.

        A memory that can only move whole sequences returns one blob, and `start` must then be 0. Returns no blobs if
        the KV cannot be saved.
        """

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """Append these positions to the sequence. The last blob may hold more tokens than are needed.

        Returns False if the memory rejects the blobs; the sequence may then be damaged, and must be emptied.
        """
