"""The interface of the device's KV memory."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Blob = NDArray[np.uint8]
"""KV of one page outside of the device. The format is private to the Memory; each token has the same size in bytes."""


class Memory(Protocol):
    """The cells of one llama.cpp context. Positions are half-open ranges; a stop of -1 means to the end."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Give sequence id `target` the KV of `source` at these positions.

        A pool puts both ids on the same cells. Lanes copy the cells.
        """

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        """Remove the id from its cells at these positions. A cell without ids is free. Returns False if impossible."""

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        """Returns a copy of these positions, one blob per page. `start` is a page boundary. The last page may be short.

        A memory that can only move whole sequences returns one blob, and `start` must then be 0.
        """

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """Append these positions to the sequence. The last blob may hold more tokens than are needed.

        Returns False, and changes nothing, if the memory rejects the blobs.
        """
