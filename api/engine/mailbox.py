"""Where the tokens of a request wait for it."""

import trio

from scheduler.messages import Output


class Mailbox:
    """Holds one Output at most for each sequence: what comes before it is taken is merged into it.

    So a slow reader gets larger pieces, never a longer queue, and who puts never waits. The size is bounded by the
    request's own max_tokens.
    """

    def __init__(self) -> None:
        self._pending: dict[int, Output] = {}
        self._filled = trio.Event()
        self._filled_at = 0.0

    def put(self, output: Output) -> None:
        if not self._pending:
            self._filled_at = trio.current_time()
            self._filled.set()
        pending = self._pending.setdefault(output.request_id, output)
        if pending is not output:
            pending.merge(output)

    @property
    def seconds_unread(self) -> float:
        """How long the oldest piece has been waiting."""
        return trio.current_time() - self._filled_at if self._pending else 0.0

    async def get(self) -> list[Output]:
        """Everything that has come since the last call, an Output for each sequence; waits if nothing has."""
        await self._filled.wait()
        outputs = list(self._pending.values())
        self._pending.clear()
        self._filled = trio.Event()
        return outputs
