"""Finds the requests that make steps fail. A step that fails together is repeated in smaller groups, and at last alone.

If the requests of a failed step are tried in halves, about 2 * log2(n) steps find one guilty request among n. A step
computes one group of suspects, or all others. The two kinds of steps take turns, so others continue to advance.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

MAX_FAILURES_ALONE: Final = 2
"""Steps that may fail with a request alone before it fails. The first failure may be chance."""


class Suspects:
    """The requests that may be the cause of failed steps, by id. False if there are none."""

    def __init__(self) -> None:
        self._groups: deque[list[int]] = deque()
        """Requests that are tried together, next group first."""
        self._failures_alone: dict[int, int] = {}
        self._must_sample: dict[int, int] = {}
        """Requests that stay suspects until this many steps have sampled a token for them."""
        self._tried_last = False

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, request_id: int, num_tokens: int = 1) -> None:
        """Add a request that may have crashed an engine. It is alone in its steps until it has `num_tokens` more."""
        self._groups.append([request_id])
        self._must_sample[request_id] = num_tokens

    def choose(self, ready: Sequence[int]) -> Collection[int]:
        """Returns the requests of `ready` that may be in the next step: one group of suspects, or all others.

        Returns at least one request if any is ready.
        """
        suspects = {request_id for group in self._groups for request_id in group}
        others = [request_id for request_id in ready if request_id not in suspects]
        if others and self._tried_last:
            self._tried_last = False
            return others
        groups = (set(group).intersection(ready) for group in self._groups)
        group = next(filter(None, groups), None)
        self._tried_last = group is not None
        return others if group is None else group

    def passed(self, request_id: int, *, sampled: bool) -> None:
        """A step with this request succeeded. It is no longer a suspect, unless it must get more tokens first."""
        num_missing = self._must_sample.get(request_id, 0) - sampled
        if num_missing <= 0:
            self.discard(request_id)
        else:
            self._must_sample[request_id] = num_missing
            self._failures_alone.pop(request_id, None)

    def failed(self, tried: list[int]) -> int | None:
        """A step with these requests failed. Returns the request that is the cause, if that is certain."""
        was_group = any(tried[0] in group for group in self._groups)
        for request_id in tried:
            self._leave_group(request_id)
        if len(tried) == 1:
            return self._failed_alone(tried[0])
        half = len(tried) // 2
        if was_group:
            self._groups.extendleft([tried[half:], tried[:half]])
        else:  # at the end, so that others that keep failing do not delay the earlier suspects
            self._groups.extend([tried[:half], tried[half:]])
        return None

    def _failed_alone(self, request_id: int) -> int | None:
        failures = self._failures_alone.get(request_id, 0) + 1
        if failures == MAX_FAILURES_ALONE:
            self.discard(request_id)
            return request_id
        self._failures_alone[request_id] = failures
        self._groups.appendleft([request_id])
        self._tried_last = False  # it is tried again at once
        return None

    def discard(self, request_id: int) -> None:
        """The request has ended, or it is not a suspect any more. Ignores a request that is no suspect."""
        self._failures_alone.pop(request_id, None)
        self._must_sample.pop(request_id, None)
        self._leave_group(request_id)

    def _leave_group(self, request_id: int) -> None:
        for group in self._groups:
            if request_id in group:
                group.remove(request_id)
        self._groups = deque(filter(None, self._groups))
