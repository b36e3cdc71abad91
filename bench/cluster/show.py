"""The table of runs, and their JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.cluster.accounting import MAX_SHARE, MAX_WORK, Run

_NONE: Final = "-"


def _count(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} s"


def _verdict(run: Run) -> str:
    return {None: _NONE, True: "holds", False: "does NOT hold"}[run.holds]


COLUMNS: Final[tuple[tuple[str, Callable[[Run], str]], ...]] = (
    ("nodes", lambda run: str(len(run.nodes))),
    ("workload", lambda run: run.workload),
    ("policy", lambda run: run.policy),
    ("requests", lambda run: _count(run.total.requests)),
    ("prompt tokens", lambda run: _count(run.total.prompt_tokens)),
    ("computed", lambda run: _count(run.total.computed_tokens)),
    ("of the least", lambda run: _NONE if run.work_ratio is None else f"{run.work_ratio:.3f}"),
    ("hit rate", lambda run: _share(run.total.hit_rate)),
    ("busiest node", lambda run: _share(run.busiest_share)),
    ("", _verdict),
    ("simulated: computed", lambda run: _count(run.predicted.computed_tokens if run.predicted else None)),
    ("hit rate", lambda run: _share(run.predicted.hit_rate if run.predicted else None)),
    ("off by", lambda run: _share(run.deviation)),
    ("tokens/s", lambda run: _count(run.measures["tokens_per_s"])),
    ("TTFT p50", lambda run: _seconds(run.measures["ttft_p50_s"])),
    ("TTFT p99", lambda run: _seconds(run.measures["ttft_p99_s"])),
    ("errors", lambda run: _count(run.measures["errors"])),
    ("failed, running", lambda run: _count(run.outage.failed_running if run.outage else None)),
    ("failed, new", lambda run: _count(run.outage.failed_new if run.outage else None)),
    ("served again after", lambda run: _seconds(run.outage.served_again_s if run.outage else None)),
    ("first token after", lambda run: _seconds(run.outage.first_token_s if run.outage else None)),
)
EXPLANATION: Final = (
    "The least: what one node computes, and a copy of the shared prefix for each further node. A policy holds if it "
    f"computes at most {MAX_WORK:g} times the least, and the busier of two nodes has at most {MAX_SHARE:.0%} of the "
    "requests."
)


def show(runs: Sequence[Run], console: Console) -> None:
    """Prints the table. Columns without a value are left out."""
    table = Table()
    columns = {index: [cell(run) for run in runs] for index, (_, cell) in enumerate(COLUMNS)}
    columns = {index: cells for index, cells in columns.items() if set(cells) != {_NONE}}
    for index in columns:
        name = COLUMNS[index][0]
        table.add_column(name, justify="left" if name in ("workload", "policy", "") else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    if any(run.holds is not None for run in runs):
        console.print(EXPLANATION)
    for run in runs:
        for trouble in run.troubles:
            console.print(f"{run.workload}, {run.policy}: {trouble}", style="red", markup=False)


def document(run: Run) -> dict[str, Any]:
    """The run with all that is derived from its counts."""
    return {
        **asdict(run),
        "num_nodes": len(run.nodes),
        "total": {**asdict(run.total), "hit_rate": run.total.hit_rate},
        "work_ratio": run.work_ratio,
        "busiest_share": run.busiest_share,
        "holds": run.holds,
        "deviation": run.deviation,
    }
