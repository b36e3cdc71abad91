"""Summaries of blocks: medians, spreads, and the first server compared with the others.

Pure arithmetic over plain values, so that a report can be made again from the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.stats import Measures

# The metrics of a comparison. True: more is better.
METRICS: dict[str, bool] = {
    "tokens_per_s": True,
    "stream_tokens_per_s": True,
    "wall_s": False,
    "ttft_p50_s": False,
    "ttft_p99_s": False,
    "itl_p50_s": False,
    "itl_p99_s": False,
    "itl_max_s": False,
    "gap_s": False,
    "long_ttft_s": False,
    "cpu_s_per_token": False,
    "memory_bytes": False,
}
RATES = ("tokens_per_s", "stream_tokens_per_s")
SUMMARIZED = (*METRICS, "cached_share")


@dataclass(frozen=True, slots=True)
class Block:
    """One server, one workload, one repetition."""

    server: str
    workload: str
    repetition: int
    figures: Measures
    trouble: str = ""
    """Why these figures do not count. A block with failed requests did less work."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the values of all repetitions."""

    median: float
    min: float
    max: float
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """The results of a server under a workload."""

    workload: str
    server: str
    figures: dict[str, Spread]
    """By metric. A metric without a value in any repetition is missing."""
    lead: dict[str, Spread]
    """By metric, how many times better the first server is, within each repetition. Above 1 it is ahead."""
    of_limit: dict[str, Spread]
    """Rates divided by the bare loop's, within each repetition, by metric."""
    troubles: tuple[str, ...]


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def rows(blocks: Sequence[Block], limit: str = "") -> list[Row]:
    """One row for each workload and server, in the order of first appearance. `limit` is the bare loop's name."""
    workloads = dict.fromkeys(block.workload for block in blocks)
    servers = list(dict.fromkeys(block.server for block in sorted(blocks, key=lambda block: block.repetition)))
    found = {(block.workload, block.server, block.repetition): block for block in blocks}
    repetitions = sorted({block.repetition for block in blocks})
    first = next((server for server in servers if server != limit), "")

    def values(workload: str, server: str, metric: str) -> dict[int, float]:
        by_repetition = {}
        for repetition in repetitions:
            block = found.get((workload, server, repetition))
            if block is not None and not block.trouble and (value := block.figures.get(metric)) is not None:
                by_repetition[repetition] = value
        return by_repetition

    def compared(workload: str, ours: str, theirs: str, metric: str, more_is_better: bool) -> Spread | None:
        one, other = values(workload, ours, metric), values(workload, theirs, metric)
        both = [(one[r], other[r]) for r in one if r in other]
        ratios = [a / b if more_is_better else b / a for a, b in both if a > 0 and b > 0]
        return spread(ratios)

    result = []
    for workload in workloads:
        for server in servers:
            mine = [block for block in blocks if (block.workload, block.server) == (workload, server)]
            if not mine:
                continue
            figures = {m: s for m in SUMMARIZED if (s := spread([*values(workload, server, m).values()])) is not None}
            lead = {
                m: s
                for m, better in METRICS.items()
                if server != first and (s := compared(workload, first, server, m, better)) is not None
            }
            of_limit = {
                m: s
                for m in RATES
                if limit not in ("", server) and (s := compared(workload, server, limit, m, True)) is not None
            }
            troubles = tuple(dict.fromkeys(block.trouble for block in mine if block.trouble))
            result.append(Row(workload, server, figures, lead, of_limit, troubles))
    return result


def best(rows_of_workload: Sequence[Row], metric: str, among: Sequence[str]) -> Row | None:
    """The row with the best median among those servers."""
    candidates = [row for row in rows_of_workload if row.server in among and metric in row.figures]
    pick = max if METRICS[metric] else min
    return pick(candidates, key=lambda row: row.figures[metric].median, default=None)


def verdicts(table: Sequence[Row], first: str, among: Sequence[str]) -> list[dict[str, Any]]:
    """The best of the other servers for each workload and metric, and the first server's lead over it."""
    found: list[dict[str, Any]] = []
    for workload in dict.fromkeys(row.workload for row in table):
        mine = [row for row in table if row.workload == workload]
        for metric in METRICS:
            rival = best(mine, metric, [name for name in among if name != first])
            if rival is not None and metric in rival.lead:
                found.append({"workload": workload, "metric": metric, "best": rival.server, "lead": rival.lead[metric]})
    return found
