"""What the cache asks of the device's KV memory."""

from typing import Protocol


class Memory(Protocol):
    """The cells of one llama.cpp context. Positions are half-open ranges; a stop of -1 means to the end."""

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let sequence id `target` use the cells of `source` at these positions too, without copying them."""

    def remove(self, sequence_id: int, start: int, stop: int) -> bool:
        """Take the id off its cells at these positions; a cell without ids is free. False if it cannot be done."""
