"""Learns how long a step takes: its passes over the weights by their numbers of rows, and the attention of each row.

Whether drafts pay depends on the ratio of a longer step to a plain one, not on how fast the machine is. So all
estimates follow its speed together. The ratios begin with what was measured at the start, and change slowly.
"""

from bisect import bisect_right
from collections.abc import Sequence as Items
from itertools import pairwise
from typing import Final

NODES: Final = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
"""Numbers of rows whose seconds are learned. Those between are interpolated."""
LEARNING: Final = 0.3
"""Weight of a step in the estimates of its own numbers of rows."""
DRIFT: Final = 0.2
"""Weight of a step in all other estimates: other programs slow all steps down."""
MAX_RATIO: Final = 1.5
"""A step counts as at most this many times as long as expected, because something else may have delayed it."""
FULL_ROWS: Final = 64
"""From this number of rows on, the time of a pass on a CPU is about proportional to it."""
BLOCK_SHARE: Final = 0.55
"""Attention takes so much of the time if FULL_ROWS rows belong to one sequence: llama.cpp then computes blocks. After
1,000 to 6,000 tokens, 0.51 to 0.60 were measured."""
HOPE: Final = 0.998
MAX_HOPE: Final = 0.75
"""The estimate of a larger pass than those of a step with drafts falls by HOPE, until it takes MAX_HOPE of their time
per row. So it is tried again some time: an estimate that is too high would never be corrected."""


class PassSeconds:
    """Seconds of a pass by its rows, each with logits: a line between points that are learned.

    The time that rows take to attend to their contexts comes on top.
    """

    def __init__(self, seconds_per_token: float, row_seconds: float, cell_share: float = 0.0) -> None:
        """Measured at an empty context:

        `seconds_per_token`: of a chunk of FULL_ROWS tokens of a prompt. `row_seconds`: of a pass of one row.
        `cell_share`: the part of `row_seconds` that a row takes for each cell that it attends to.
        """
        full = max(FULL_ROWS * seconds_per_token, row_seconds)
        slope = (full - row_seconds) / (FULL_ROWS - 1)
        self._seconds = [
            row_seconds + slope * (node - 1) if node < FULL_ROWS else full * node / FULL_ROWS for node in NODES
        ]
        """For each of NODES."""
        self._cell_seconds = cell_share * row_seconds

    def __call__(self, rows: int) -> float:
        """Returns the seconds of a pass, without attention."""
        node, share = _place(rows)
        return (1 - share) * self._seconds[node] + share * self._seconds[node + 1]

    def attention(self, num_cells: int, rows: int) -> float:
        """Returns the seconds that `rows` rows of one sequence take to attend to `num_cells` cells each."""
        return self._cell_seconds * num_cells * rows * (BLOCK_SHARE if rows >= FULL_ROWS else 1.0)

    @property
    def least_row_seconds(self) -> float:
        """The seconds that one more row takes at least."""
        pairs = pairwise(zip(NODES, self._seconds, strict=True))
        return min((after - before) / (more - fewer) for (fewer, before), (more, after) in pairs)

    def observe(self, passes: Items[int], seconds: float, attention: float = 0.0) -> None:
        """Record the duration of a step with these numbers of rows, one for each pass.

        `attention`: the seconds of it that were expected for attention.
        """
        ratio = seconds / (sum(map(self, passes)) + attention)
        step = min(max(ratio, 1 / MAX_RATIO), MAX_RATIO) - 1
        weights = [DRIFT] * len(NODES)
        for rows in passes:
            node, share = _place(rows)
            weights[node] += (LEARNING - DRIFT) * (1 - share) / len(passes)
            weights[node + 1] += (LEARNING - DRIFT) * share / len(passes)
        self._seconds = [each * (1 + step * weight) for each, weight in zip(self._seconds, weights, strict=True)]
        self._cell_seconds *= 1 + step * DRIFT

    def hope(self, rows: int) -> None:
        """A step with drafts had a pass of `rows` rows: lower the estimates of larger ones a little."""
        least = MAX_HOPE * self(rows) / rows
        for index in range(bisect_right(NODES, rows) + 1, len(NODES)):
            self._seconds[index] = max(HOPE * self._seconds[index], min(self._seconds[index], least * NODES[index]))


def _place(rows: int) -> tuple[int, float]:
    """Returns the node before this number of rows, and the share of the next node."""
    node = min(max(bisect_right(NODES, rows) - 1, 0), len(NODES) - 2)
    return node, (rows - NODES[node]) / (NODES[node + 1] - NODES[node])
