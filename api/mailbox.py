"""Where a stream's tokens wait for it."""

import trio

from scheduler.messages import Output


class Mailbox:
    """Holds one Output at most: what comes before it is taken is merged into it.

    So a slow reader gets larger pieces, never a longer queue, and who puts never waits. The size is bounded by the
    request's own max_tokens.
    """

    def __init__(self) -> None:
        self._pending: Output | None = None
        self._filled = trio.Event()
        self._filled_at = 0.0

    def put(self, output: Output) -> None:
        if self._pending is None:
            self._pending = output
            self._filled_at = trio.current_time()
            self._filled.set()
        else:
            self._pending.tokens.extend(output.tokens)
            self._pending.finish_reason = output.finish_reason
            self._pending.error = output.error

    @property
    def seconds_unread(self) -> float:
        """How long the oldest piece has been waiting."""
        return 0.0 if self._pending is None else trio.current_time() - self._filled_at

    async def get(self) -> Output:
        """Everything that has come since the last call; waits if nothing has."""
        await self._filled.wait()
        output = self._pending
        assert output is not None, "filled means that something is pending"
        self._pending = None
        self._filled = trio.Event()
        return output
