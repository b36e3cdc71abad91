"""Which requests may be the reason why engines crash."""

from collections.abc import Iterable
from typing import Final

FIRST_ALONE: Final = 8
"""Tokens that a suspect gets alone. A crash may lose the last tokens, so it takes some to reach that point again."""
GROWTH: Final = 4
"""How much longer it stays alone after each further crash that it may have caused."""
MAX_ALONE: Final = 1 << 20


class Suspicion:
    """Learns from each crash. A request is guilty once two engines have crashed while they computed only this request.

    A suspect is a request that may have crashed an engine. It is computed alone, until it has passed that point. If
    engines crash only when it is not alone any more, it stays alone for longer each time. So a request that crashes
    engines at some token is found after a number of crashes that is logarithmic in the number of tokens.
    """

    def __init__(self) -> None:
        self._suspects: dict[int, int] = {}
        """How many more tokens each suspect must get alone."""
        self._num_crashes: dict[int, int] = {}
        """How many crashes each request may have caused. It stays in here until it ends."""
        self._struck: set[int] = set()
        """Requests that have crashed one engine alone. They stay in here until they end."""

    def __bool__(self) -> bool:
        """Whether there is any suspect."""
        return bool(self._suspects)

    def __contains__(self, request_id: int) -> bool:
        """Whether the request is a suspect."""
        return request_id in self._suspects

    def num_alone(self, request_id: int) -> int:
        """How many tokens the request must get alone; 0 if it is no suspect."""
        return self._suspects.get(request_id, 0)

    def crashed(self, computed: frozenset[int], open_ids: Iterable[int]) -> int | None:
        """Record that an engine crashed while it computed these requests. Returns the guilty one, if it is known.

        `open_ids`: the requests that have not ended.
        """
        suspects = computed.intersection(open_ids)
        for request_id in suspects:
            num_crashes = self._num_crashes.get(request_id, 0)
            self._num_crashes[request_id] = num_crashes + 1
            self._suspects[request_id] = min(FIRST_ALONE * GROWTH**num_crashes, MAX_ALONE)
        if len(computed) != 1 or not suspects:
            return None
        [alone] = suspects
        if alone in self._struck:
            return alone
        self._struck.add(alone)
        return None

    def advance(self, request_id: int, num_tokens: int) -> None:
        """The request got tokens. After enough of them it is no suspect any more, but an earlier crash still counts."""
        if request_id in self._suspects:
            self._suspects[request_id] -= num_tokens
            if self._suspects[request_id] <= 0:
                del self._suspects[request_id]

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self._suspects.pop(request_id, None)
        self._num_crashes.pop(request_id, None)
        self._struck.discard(request_id)
