"""Which requests may be the reason why engines crash."""

from collections.abc import Iterable


class Suspicion:
    """Learns from each crash. A request is guilty once two engines have crashed while they computed only this request.

    A suspect is a request that may have crashed an engine. It is computed alone, until it has passed that point.
    """

    def __init__(self) -> None:
        self._suspects: set[int] = set()
        self._struck: set[int] = set()
        """Requests that have crashed one engine alone. They stay in here until they end."""

    def __contains__(self, request_id: int) -> bool:
        """Whether the request is a suspect."""
        return request_id in self._suspects

    def __bool__(self) -> bool:
        """Whether there is any suspect."""
        return bool(self._suspects)

    def crashed(self, computed: frozenset[int], open_ids: Iterable[int]) -> int | None:
        """Record that an engine crashed while it computed these requests. Returns the guilty one, if it is known.

        `open_ids`: the requests that have not ended.
        """
        suspects = computed.intersection(open_ids)
        self._suspects |= suspects
        if len(computed) != 1 or not suspects:
            return None
        [alone] = suspects
        if alone in self._struck:
            return alone
        self._struck.add(alone)
        return None

    def clear(self, request_id: int) -> None:
        """The request has been computed alone without a crash. It may crash an engine later, so a strike stays."""
        self._suspects.discard(request_id)

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self._suspects.discard(request_id)
        self._struck.discard(request_id)
