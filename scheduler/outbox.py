"""Holds back tokens that follow others of their request too closely, so that they are sent together.

Each message to the API, and each event that the API makes of it for a client, costs computing time on both sides. A
fast model would spend much of it on events that nobody can distinguish. vLLM's `--stream-interval` does the same, but
counts tokens instead of time.
"""

import math
import time
from collections.abc import Callable

from scheduler.messages import Output
from scheduler.plan import Plan


class Outbox:
    """The outputs of running requests that are not sent yet.

    An output waits only for a step that continues its answer, and only if that step probably ends within the interval.
    The first output of a request and its last one do not wait.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`interval`: seconds from one output of a request to the next, if steps are shorter; 0 holds nothing back."""
        self._interval = interval
        self._clock = clock
        self._held: dict[int, Output] = {}
        """By request id."""
        self._sent: dict[int, float] = {}
        """When the last output of a request was sent, by request id."""

    def add(self, outputs: list[Output], step_seconds: float) -> list[Output]:
        """Take the outputs of a step. Returns those to send now.

        `step_seconds`: how long that step took. The next one is expected to take as long.
        """
        if not self._interval:
            return outputs
        now = self._clock()
        due = []
        for later in outputs:
            output = self._held.pop(later.request_id, None)
            if output is None:
                output = later
            else:
                output.merge(later)
            if output.finish_reason is not None:
                self._sent.pop(output.request_id, None)
            elif now + step_seconds < self._sent.get(output.request_id, -math.inf) + self._interval:
                self._held[output.request_id] = output
                continue
            else:
                self._sent[output.request_id] = now
            due.append(output)
        return due

    def before(self, plan: Plan) -> list[Output]:
        """Returns the held outputs if one of them would wait longer in the step of this plan than in the last one.

        So it is if the step computes prompts, too, or leaves out an answer.
        """
        if not self._held:
            return []
        continued = {chunk.sequence.request_id for chunk in plan.chunks[: plan.num_answers]}
        return [] if not plan.num_prefill and self._held.keys() <= continued else self.flush()

    def flush(self) -> list[Output]:
        """Returns all held outputs."""
        outputs, self._held = list(self._held.values()), {}
        if outputs:
            self._sent.update(dict.fromkeys((output.request_id for output in outputs), self._clock()))
        return outputs

    def forget(self, request_id: int) -> None:
        """A request has been cancelled: nobody needs the rest of its output."""
        self._held.pop(request_id, None)
        self._sent.pop(request_id, None)
