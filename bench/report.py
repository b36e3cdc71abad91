"""Results as a table, as one line of JSON for scripts, and as a file with every record."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bench.load import Repetition
from bench.records import Record
from bench.stats import Measures, across, summarize

MAX_ERRORS_SHOWN = 5


def figures(repetition: Repetition) -> Measures:
    return {**asdict(summarize(repetition.records)), **repetition.measures}


def all_records(repetitions: Sequence[Repetition]) -> list[Record]:
    return [record for repetition in repetitions for record in (*repetition.records, *repetition.aside)]


def result(head: dict[str, Any], repetitions: Sequence[Repetition]) -> dict[str, Any]:
    """The last output line: totals over all requests, then medians, minima and maxima over repetitions."""
    rows = [figures(repetition) for repetition in repetitions]
    records = all_records(repetitions)
    return {
        **head,
        "repeat": len(rows),
        "requests": len(records),
        "errors": sum(record.error is not None for record in records),
        "summary": _rounded(across(rows, median)),
        "min": _rounded(across(rows, min)),
        "max": _rounded(across(rows, max)),
    }


def _rounded(measures: Measures) -> Measures:
    return {name: None if value is None else round(value, 6) for name, value in measures.items()}


def document(outcome: dict[str, Any], how: dict[str, Any], repetitions: Sequence[Repetition]) -> bytes:
    """The output file: the result, how it was made, and every record with times since its repetition's start."""
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    runs = []
    for repetition in repetitions:
        zero = min((r.start for r in (*repetition.records, *repetition.aside)), default=0.0)
        runs.append(
            {
                "figures": _rounded(figures(repetition)),
                "records": [_relative(record, zero) for record in repetition.records],
                "aside": [_relative(record, zero) for record in repetition.aside],
            }
        )
    content = {**outcome, **how, "client_machine": machine, "repetitions": runs}
    return orjson.dumps(content, default=str, option=orjson.OPT_INDENT_2)


def _relative(record: Record, zero: float) -> dict[str, Any]:
    def since(stamp: float) -> float:
        return round(stamp - zero, 6)

    times = {"start": since(record.start), "chunks": [since(t) for t in record.chunks], "end": since(record.end)}
    return {**asdict(record), **times}


def show(outcome: dict[str, Any], repetitions: Sequence[Repetition], console: Console) -> None:
    repeat = outcome["repeat"]
    console.print(f"{outcome['label']}: {outcome['requests']} requests to {outcome['url']}", markup=False)
    table = Table()
    table.add_column("")
    for name in ("median", "min", "max") if repeat > 1 else ("value",):
        table.add_column(name, justify="right")
    for name, value in outcome["summary"].items():
        more = (outcome["min"][name], outcome["max"][name]) if repeat > 1 else ()
        table.add_row(_title(name), *(_number(name, v) for v in (value, *more)))
    console.print(table)
    errors = Counter(record.error for record in all_records(repetitions) if record.error is not None)
    for error, count in errors.most_common(MAX_ERRORS_SHOWN):
        console.print(f"{count} x {error}", style="red", markup=False)


def _title(name: str) -> str:
    return name.replace("_per_s", "/s").removesuffix("_s").replace("_", " ")


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("_share"):
        return f"{value:.1%}"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.2f}" if name.endswith(("_per_s", "_ratio")) else f"{value:g}"
