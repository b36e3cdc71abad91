"""Learns how long a pass over the weights takes, by the number of rows that it computes."""

from bisect import bisect_right
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import Final

NODES: Final = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
"""Numbers of rows whose seconds are learned. Those between are interpolated."""
LEARNING: Final = 0.3
"""Weight of a step in the estimates of its own numbers of rows."""
DRIFT: Final = 0.2
"""Weight of a step in all other estimates: other programs or a longer context slow all passes down."""
MAX_RATIO: Final = 1.5
"""A step counts as at most this many times as long as expected, because something else may have delayed it."""
FULL_ROWS: Final = 64
"""From this number of rows on, the time of a pass on a CPU is about proportional to it."""
HOPE: Final = 0.998
MAX_HOPE: Final = 0.75
"""The estimate of a larger pass than those of a step with drafts falls by HOPE, until it takes MAX_HOPE of their time
per row. So it is tried again some time: an estimate that is too high would never be corrected."""


class PassSeconds:
    """Seconds of a pass by its rows, each with logits: a line between points that are learned."""

    def __init__(self, seconds_per_token: float) -> None:
        """`seconds_per_token`: that of a chunk of FULL_ROWS tokens of a prompt, which is faster: it has few logits."""
        self._full_seconds = FULL_ROWS * seconds_per_token
        self._seconds: list[float] = []
        """For each of NODES. Empty before the first observation."""

    @property
    def is_known(self) -> bool:
        """Whether some step was observed."""
        return bool(self._seconds)

    def __call__(self, rows: int) -> float:
        """Returns the seconds of a pass. Some step must have been observed."""
        node, share = _place(rows)
        return (1 - share) * self._seconds[node] + share * self._seconds[node + 1]

    @property
    def least_row_seconds(self) -> float:
        """The seconds that one more row takes at least. Some step must have been observed."""
        pairs = pairwise(zip(NODES, self._seconds, strict=True))
        return min((after - before) / (more - fewer) for (fewer, before), (more, after) in pairs)

    def observe(self, passes: Items[int], seconds: float) -> None:
        """Record the duration of a step with these numbers of rows, one for each pass."""
        if not self._seconds:
            self._begin(passes, seconds)
        ratio = seconds / sum(map(self, passes))
        step = min(max(ratio, 1 / MAX_RATIO), MAX_RATIO) - 1
        weights = [DRIFT] * len(NODES)
        for rows in passes:
            node, share = _place(rows)
            weights[node] += (LEARNING - DRIFT) * (1 - share) / len(passes)
            weights[node + 1] += (LEARNING - DRIFT) * share / len(passes)
        self._seconds = [each * (1 + step * weight) for each, weight in zip(self._seconds, weights, strict=True)]

    def hope(self, rows: int) -> None:
        """A step with drafts had a pass of `rows` rows: lower the estimates of larger ones a little."""
        least = MAX_HOPE * self(rows) / rows
        for index in range(bisect_right(NODES, rows) + 1, len(NODES)):
            self._seconds[index] = max(HOPE * self._seconds[index], min(self._seconds[index], least * NODES[index]))

    def _begin(self, passes: Items[int], seconds: float) -> None:
        """Draw a line from the first step to that of FULL_ROWS rows."""
        rows, each = sum(passes) / len(passes), seconds / len(passes)
        full = max(self._full_seconds, each)
        slope = (full - each) / (FULL_ROWS - rows) if rows < FULL_ROWS else 0.0
        line = [max(full + slope * (node - FULL_ROWS), each / rows) for node in NODES if node < FULL_ROWS]
        self._seconds = [*line, *(full * node / FULL_ROWS for node in NODES if node >= FULL_ROWS)]


def _place(rows: int) -> tuple[int, float]:
    """Returns the node before this number of rows, and the share of the next node."""
    node = min(max(bisect_right(NODES, rows) - 1, 0), len(NODES) - 2)
    return node, (rows - NODES[node]) / (NODES[node + 1] - NODES[node])
