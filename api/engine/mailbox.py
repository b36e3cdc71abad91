"""Outputs of a request that its stream has not read yet."""

import trio

from scheduler.messages import Output


class Mailbox:
    """Holds at most one Output for each sequence. An unread output is merged with the next one.

    So a slow reader gets larger outputs, not a longer queue, and `put` never waits. The request's max_tokens bounds the
    size.
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

    def nudge(self) -> None:
        """Let a waiting `get` return without outputs."""
        self._filled.set()

    @property
    def seconds_unread(self) -> float:
        """How long the oldest output has been waiting."""
        return trio.current_time() - self._filled_at if self._pending else 0.0

    async def get(self) -> list[Output]:
        """Returns all outputs since the last call, merged into one for each sequence. Waits if there are none.

        Returns nothing after `nudge`.
        """
        await self._filled.wait()
        outputs = list(self._pending.values())
        self._pending.clear()
        self._filled = trio.Event()
        return outputs
