"""A KV memory that stores nothing, for engines and simulations without a model."""

from collections.abc import Sequence

import numpy as np

from kvcache.memory import Blob
from kvcache.tree import PAGE_TOKENS


class NullMemory:
    """Every operation succeeds. Saved pages count `bytes_per_token` bytes a token in a tier, but take no memory."""

    moves_pages = True

    def __init__(self, bytes_per_token: int = 0) -> None:
        self._bytes_per_token = bytes_per_token

    def intact_from(self, sequence_id: int) -> int:
        return 0

    def share(self, source: int, target: int, start: int, stop: int) -> bool:
        return True

    def merge(self, source: int, target: int, start: int, stop: int) -> None: ...

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        return True

    def save(self, sequence_id: int, start: int, stop: int) -> list[Blob]:
        sizes = (min(PAGE_TOKENS, stop - first) * self._bytes_per_token for first in range(start, stop, PAGE_TOKENS))
        return [np.broadcast_to(np.uint8(0), size) for size in sizes]

    def load(self, sequence_id: int, start: int, stop: int, blobs: Sequence[Blob]) -> bool:
        return True
