"""Measures contestants block by block: one workload, one contestant, one repetition.

Each repetition begins with another contestant, so that a drift of the machine affects all alike.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import psutil
import trio

from bench import report
from bench.contestants import Contestant, Entry
from bench.load import Repetition
from bench.records import BenchError
from bench.servers import Usage
from bench.stats import Measures, ratio
from bench.table import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds: `block` for one server, workload and repetition; `total` for the comparison."""

    block: float = 300.0
    total: float = 4 * 3600.0


class OutOfTimeError(Exception):
    """The time limit of the comparison has passed. Blocks that have ended remain valid."""


def block_of(repetition: Repetition, usage: Usage) -> tuple[Measures, str]:
    """The figures of a block, and the reason if they do not count."""
    figures = report.figures(repetition)
    records = report.all_records([repetition])
    tokens = sum(record.completion_tokens for record in records)
    figures |= {
        "cpu_s": usage.cpu_s or None,
        "cpu_s_per_token": ratio(usage.cpu_s or None, tokens),
        "memory_bytes": usage.memory_bytes or None,
    }
    errors = Counter(record.error for record in records if record.error is not None)
    if not errors:
        return figures, ""
    ((error, _),) = errors.most_common(1)
    return figures, f"{errors.total()} of {len(records)} requests failed: {error}"


async def measure(
    contestants: Sequence[Contestant],
    found: Sequence[Entry],
    *,
    repeat: int,
    seed: int,
    salt: int,
    limits: Limits,
    on_block: Callable[[Block], object],
) -> None:
    """Calls `on_block` with each block as it ends. Raises OutOfTimeError at the total time limit.

    A contestant that fails a whole workload, or exceeds the time limit of a block, does not run that workload again.
    """
    deadline = trio.current_time() + limits.total
    given_up: set[tuple[str, str]] = set()
    for repetition, entry in product(range(repeat), found):
        first = repetition % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            if (contestant.name, entry.name) in given_up:
                continue
            if trio.current_time() > deadline:
                raise OutOfTimeError(f"stopped after {limits.total:.0f} s, in repetition {repetition + 1} of {repeat}")
            # With the workload's name, `uniform:8` and `uniform:32` send different texts.
            rng = Random(f"{seed}/{salt}/{entry.name}/{repetition}")
            async with trio.open_nursery() as nursery:
                for each in contestants:
                    nursery.start_soon(each.rest)
            figures: Measures = {}
            began, busy = trio.current_time(), _busy_seconds()
            try:
                played, usage = await contestant.play(entry, rng, limits.block)
                figures, trouble = block_of(played, usage)
                others = _busy_seconds() - busy - (0.0 if usage.is_ours else usage.cpu_s)
                figures["foreign_cores"] = ratio(max(0.0, others), trio.current_time() - began)
            except BenchError as error:
                trouble = str(error)
            if trouble and trio.current_time() - began >= limits.block:
                trouble = f"not done in {limits.block:.0f} s: {trouble}"
                given_up.add((contestant.name, entry.name))
            elif trouble and not figures.get("completion_tokens"):
                given_up.add((contestant.name, entry.name))
            on_block(Block(contestant.name, entry.name, repetition, figures, trouble))


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since it started, without this process."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice) - time.process_time()
