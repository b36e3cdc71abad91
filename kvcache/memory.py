"""What the cache asks of the device's KV memory."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Blob = NDArray[np.uint8]
"""The KV of a page outside of the device: as many bytes for each token, in a form that only its memory knows."""


class Memory(Protocol):
    """The cells of one llama.cpp context. Positions are half-open ranges; a stop of -1 means to the end."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let sequence id `target` use the cells of `source` at these positions too, without copying them."""

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        """Take the id off its cells at these positions; a cell without ids is free. False if it cannot be done."""

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        """Copy these positions, which begin where a page does: a blob for each page; the last may be a part of one."""

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        """Put these positions behind what the id holds. The last blob may hold more tokens than are wanted.

        False, with nothing changed, if they cannot be taken.
        """
