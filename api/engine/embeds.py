"""The order in which an engine gets requests for embeddings."""

from collections.abc import Callable

from api.engine.suspicion import Suspicion


class Embeds:
    """Posts requests for embeddings, all at once. While one of them is a suspect, each waits for the one before it.

    A batch has texts of several requests. One at a time, each batch has texts of one request only, so that a crash
    shows which request is its cause. Embeddings are short, so this costs others less than batches that exclude a
    suspect would.
    """

    def __init__(self, post: Callable[[int], None], suspicion: Suspicion) -> None:
        self._post = post
        self._suspicion = suspicion
        self._waiting: dict[int, None] = {}
        """Requests that the engine does not have yet, in order."""
        self._posted: set[int] = set()

    def add(self, request_id: int) -> None:
        self._waiting[request_id] = None
        self._post_waiting()

    def end(self, request_id: int) -> None:
        """Remove a request that has ended or was cancelled. Ignores other requests."""
        if request_id in self._posted or request_id in self._waiting:
            self._waiting.pop(request_id, None)
            self._posted.discard(request_id)
            self._post_waiting()

    def clear(self) -> None:
        """Remove all requests: the engine has ended."""
        self._waiting.clear()
        self._posted.clear()

    def _post_waiting(self) -> None:
        one_at_a_time = bool(self._suspicion) and any(
            request_id in self._suspicion for request_id in (*self._posted, *self._waiting)
        )
        while self._waiting and not (one_at_a_time and self._posted):
            request_id = next(iter(self._waiting))
            del self._waiting[request_id]
            self._posted.add(request_id)
            self._post(request_id)
