"""From what was measured to what is told: medians, spreads, and how the first server stands to the others.

Pure arithmetic over plain values, so that a report can be made again from the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.stats import Measures

# What servers are compared by, and whether more of it is better.
METRICS: dict[str, bool] = {
    "tokens_per_s": True,
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
TOLD = (*METRICS, "cached_share")


@dataclass(frozen=True, slots=True)
class Block:
    """One server, one workload, one repetition."""

    server: str
    workload: str
    repetition: int
    figures: Measures
    trouble: str = ""
    """Why these figures do not count: a block of which a part failed did less work."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Over repetitions."""

    median: float
    min: float
    max: float
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """A server under a workload."""

    workload: str
    server: str
    figures: dict[str, Spread]
    """By metric; what no repetition can say is missing."""
    lead: dict[str, Spread]
    """How many times better the first server is, taken within each repetition: above 1 it is ahead."""
    of_limit: Spread | None
    """Throughput as a part of the bare loop's, within each repetition."""
    troubles: tuple[str, ...]


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def rows(blocks: Sequence[Block], limit: str = "") -> list[Row]:
    """One for each workload and server, in the order of their first appearance; `limit` names the bare loop."""
    workloads = dict.fromkeys(block.workload for block in blocks)
    servers = list(dict.fromkeys(block.server for block in sorted(blocks, key=lambda block: block.repetition)))
    found = {(block.workload, block.server, block.repetition): block for block in blocks}
    repetitions = sorted({block.repetition for block in blocks})
    first = next((server for server in servers if server != limit), "")

    def values(workload: str, server: str, metric: str) -> dict[int, float]:
        said = {}
        for repetition in repetitions:
            block = found.get((workload, server, repetition))
            if block is not None and not block.trouble and (value := block.figures.get(metric)) is not None:
                said[repetition] = value
        return said

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
            told = {m: s for m in TOLD if (s := spread([*values(workload, server, m).values()])) is not None}
            lead = {
                m: s
                for m, better in METRICS.items()
                if server != first and (s := compared(workload, first, server, m, better)) is not None
            }
            of_limit = compared(workload, server, limit, "tokens_per_s", True) if limit not in ("", server) else None
            troubles = tuple(dict.fromkeys(block.trouble for block in mine if block.trouble))
            result.append(Row(workload, server, told, lead, of_limit, troubles))
    return result


def best(rows_of_workload: Sequence[Row], metric: str, among: Sequence[str]) -> Row | None:
    """The row with the best median, of those servers."""
    able = [row for row in rows_of_workload if row.server in among and metric in row.figures]
    pick = max if METRICS[metric] else min
    return pick(able, key=lambda row: row.figures[metric].median, default=None)


def verdicts(table: Sequence[Row], first: str, among: Sequence[str]) -> list[dict[str, Any]]:
    """For each workload and metric the best of the other servers, and how the first stands to it."""
    told: list[dict[str, Any]] = []
    for workload in dict.fromkeys(row.workload for row in table):
        mine = [row for row in table if row.workload == workload]
        for metric in METRICS:
            rival = best(mine, metric, [name for name in among if name != first])
            if rival is not None and metric in rival.lead:
                told.append({"workload": workload, "metric": metric, "best": rival.server, "lead": rival.lead[metric]})
    return told
