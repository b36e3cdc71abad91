"""Stored responses, which later requests can continue. Memory is bounded: the oldest responses are dropped first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

MAX_RESPONSES: Final = 1024
MAX_BYTES: Final = 64 * 1024 * 1024
OVERHEAD: Final = 256
"""Approximate bytes that a response or an item takes besides its text."""
REFERENCE: Final = 8
"""Bytes that an item takes in each conversation that it is part of."""


@dataclass(frozen=True, eq=False, slots=True)
class KeptItem:
    """An item of conversations, as JSON. Responses of one conversation share it."""

    id: str
    data: bytes
    is_ours: bool
    """Whether this server made its id. Only such items can be referenced: their ids cannot be guessed."""

    @classmethod
    def of(cls, item: dict[str, Any], *, is_ours: bool) -> "KeptItem":
        return cls(item["id"], orjson.dumps(item), is_ours)

    def load(self) -> dict[str, Any]:
        item: dict[str, Any] = orjson.loads(self.data)
        return item


@dataclass(frozen=True, eq=False, slots=True)
class KeptResponse:
    """A response that has ended, and the conversation that it answered."""

    data: bytes
    """The response, as JSON."""
    input: tuple[KeptItem, ...]
    """All items before it, those of earlier responses included."""
    output: tuple[KeptItem, ...]
    has_logprobs: bool = False

    @property
    def conversation(self) -> tuple[KeptItem, ...]:
        """The items that a response which continues this one begins with."""
        return self.input + self.output


Place = tuple[str, str]
"""Whom a response or an item belongs to, and its id. Nobody finds the responses and items of others."""


class KeptResponses:
    """Responses by owner and id. The latest response of a conversation has all its items, even if earlier ones are
    dropped. All owners together share the bounds.
    """

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: dict[Place, KeptResponse] = {}
        """In the order in which they ended."""
        self._uses: Counter[KeptItem] = Counter()
        """Number of responses that contain an item."""
        self._items: dict[Place, KeptItem] = {}
        """The items whose ids this server made."""
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._responses)

    def find(self, owner: str, response_id: str) -> KeptResponse | None:
        return self._responses.get((owner, response_id))

    def find_item(self, owner: str, item_id: str) -> KeptItem | None:
        return self._items.get((owner, item_id))

    def keep(self, owner: str, response_id: str, response: KeptResponse) -> None:
        """Store a response, and drop the oldest ones beyond the bounds. Does nothing if it alone exceeds them."""
        if _own_bytes(response) + sum(map(_item_bytes, set(response.conversation))) > self._max_bytes:
            return  # else all others would be dropped first
        self._responses[owner, response_id] = response
        self.num_bytes += _own_bytes(response)
        for item in response.conversation:
            self._uses[item] += 1
            if self._uses[item] == 1:
                self.num_bytes += _item_bytes(item)
                if item.is_ours:
                    self._items[owner, item.id] = item
        while len(self._responses) > self._max_responses or self.num_bytes > self._max_bytes:
            self.delete(*next(iter(self._responses)))

    def delete(self, owner: str, response_id: str) -> bool:
        """Delete a response. Returns whether it was stored. Items of other responses stay."""
        response = self._responses.pop((owner, response_id), None)
        if response is None:
            return False
        self.num_bytes -= _own_bytes(response)
        for item in response.conversation:
            self._uses[item] -= 1
            if not self._uses[item]:
                del self._uses[item]
                if item.is_ours:
                    self._items.pop((owner, item.id), None)
                self.num_bytes -= _item_bytes(item)
        return True


def _own_bytes(response: KeptResponse) -> int:
    return len(response.data) + OVERHEAD + REFERENCE * len(response.conversation)


def _item_bytes(item: KeptItem) -> int:
    return len(item.data) + OVERHEAD


def items_of(kept: Sequence[KeptItem]) -> list[dict[str, Any]]:
    return [item.load() for item in kept]
