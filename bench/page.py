"""The report of a comparison: one self-contained HTML file, and its plots as PNG files."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench.peers import BARE
from bench.table import METRICS, RATES, Block, Row, Spread, rows, verdicts

COLUMNS: Final = (
    *RATES,
    "wall_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p50_s",
    "itl_p99_s",
    "itl_max_s",
    "cached_share",
    "cpu_s_per_token",
    "memory_bytes",
)
TITLES: Final = {
    "tokens_per_s": "tokens/s",
    "stream_tokens_per_s": "of a stream",
    "wall_s": "wall",
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "itl_p50_s": "ITL p50",
    "itl_p99_s": "ITL p99",
    "itl_max_s": "longest gap",
    "gap_s": "longest gap beside the long prompt",
    "long_ttft_s": "TTFT of the long prompt",
    "cached_share": "cached",
    "cpu_s_per_token": "CPU per token",
    "memory_bytes": "memory",
}
PLOTS: Final = (*RATES, "ttft_p50_s", "ttft_p99_s", "itl_p99_s", "itl_max_s", "cpu_s_per_token", "memory_bytes")
UNITS: Final = {"memory_bytes": (2**20, "MiB"), **dict.fromkeys(RATES, (1, "tokens per second"))}

PLOT_COLUMNS: Final = 4

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } th, td { padding: .25rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
td.bad { color: #a00; text-align: left }
small { color: #666 } img { max-width: 100% } code { font-size: 12px; word-break: break-all }
"""


def write(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes report.html and, if matplotlib is installed, a PNG for each plot. Returns their paths."""
    table = rows_of(document)
    plots = {metric: out / f"{metric}.png" for metric in PLOTS}
    plots = {metric: path for metric, path in plots.items() if _draw(table, metric, path)}
    page = out / "report.html"
    page.write_text("\n".join(_page(document, table, plots)), encoding="utf-8")
    return [page, *plots.values()]


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    blocks = [Block(**block) for block in document["blocks"]]
    return rows(blocks, limit=BARE)


def show(document: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each workload."""
    table = rows_of(document)
    for workload in dict.fromkeys(row.workload for row in table):
        mine = [row for row in table if row.workload == workload]
        grid = Table(title=workload, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        grid.add_column("")
        for name in _heads():
            grid.add_column(name, justify="right", no_wrap=True)
        for row in mine:
            grid.add_row(row.server, *_cells(row))
        console.print(grid)
        for row in mine:
            for trouble in row.troubles:
                console.print(f"{row.server}: {trouble}", style="red", markup=False)


def _heads() -> list[str]:
    return [*(TITLES[metric] for metric in COLUMNS), "ahead", "of limit", "stream ahead", "stream of limit"]


def _cells(row: Row) -> list[str]:
    """Medians, then two ratios of each rate: the first server to this one, and this one to the bare loop."""
    figures = [_number(metric, row.figures[metric].median) if metric in row.figures else "-" for metric in COLUMNS]
    return [*figures, *(_spread(found.get(rate)) for rate in RATES for found in (row.lead, row.of_limit))]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f}" + (f" ({spread.min:.2f} to {spread.max:.2f})" if spread.count > 1 else "")


def _number(metric: str, value: float) -> str:
    if metric == "memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if metric == "cached_share":
        return f"{value:.0%}"
    if metric in RATES:
        return f"{value:.1f}"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def _against_best(table: Sequence[Row]) -> Iterator[str]:
    """An HTML table: the first server against the best of the others, by workload and metric."""
    names = list(dict.fromkeys(row.server for row in table if row.server != BARE))
    found = {(each["workload"], each["metric"]): each for each in verdicts(table, names[0], names)} if names else {}
    if not found:
        return
    yield f"<h2>{html.escape(names[0])} against the best of the others</h2>"
    yield "<p>Ratios to the server with the best median among the others. Above 1, the first server is better.</p>"
    metrics = [metric for metric in METRICS if any(other == metric for _, other in found)]
    yield "<table><tr><th></th>" + "".join(f"<th>{html.escape(TITLES[m])}</th>" for m in metrics) + "</tr>"
    for workload in dict.fromkeys(workload for workload, _ in found):
        yield f"<tr><td>{html.escape(workload)}</td>"
        for metric in metrics:
            each = found.get((workload, metric))
            cell = f"{_spread(each['lead'])}<br><small>{html.escape(each['best'])}</small>" if each else "-"
            yield f"<td>{cell}</td>"
        yield "</tr>"
    yield "</table>"


def _page(document: Mapping[str, Any], table: Sequence[Row], plots: Mapping[str, Path]) -> Iterator[str]:
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    yield "<h1>Comparison of servers</h1>"
    machine = document["machine"]
    facts = (
        f"{document['model']}, {document['threads']} threads, {document['repeat']} repetitions, {document['started']}. "
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['system']}."
    )
    yield f"<p>{html.escape(facts)}</p><p><code>{html.escape(document['command'])}</code></p>"
    if document["cut_short"]:
        yield f"<p><b>Not complete: {html.escape(document['cut_short'])}.</b></p>"
    yield (
        "<p>Figures are medians of repetitions. <i>ahead</i>: the throughput of the first server divided by that of "
        "this server. <i>of limit</i>: the throughput of this server divided by that of the bare loop. Both ratios are "
        "taken within each repetition and shown as median (min to max). <i>of a stream</i>: tokens per second of one "
        "stream after its first token; the last two columns are its ratios. Memory: all processes of a server, at the "
        "end.</p>"
    )
    for workload in dict.fromkeys(row.workload for row in table):
        yield f"<h2>{html.escape(workload)}</h2><table><tr><th></th>"
        yield "".join(f"<th>{html.escape(name)}</th>" for name in _heads()) + "</tr>"
        for row in (row for row in table if row.workload == workload):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
            yield f"<tr><td>{html.escape(row.server)}</td>{cells}</tr>"
            for trouble in row.troubles:
                yield f'<tr><td></td><td class="bad" colspan="{len(_heads())}">{html.escape(trouble)}</td></tr>'
        yield "</table>"
    yield from _against_best(table)
    yield (
        "<h2>Plots</h2>"
        if plots
        else "<p>No plots: install matplotlib with <code>pip install 'cortex-server[bench]'</code>.</p>"
    )
    for metric, path in plots.items():
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<p><img alt="{html.escape(TITLES[metric])}" src="data:image/png;base64,{data}"></p>'
    yield "<h2>Servers</h2>"
    for server in document["servers"]:
        yield f"<p><b>{html.escape(server['name'])}</b>: {html.escape(server['note'])}<br><code>"
        yield html.escape(server["command"]) + "</code></p>"
    if document["tuning_tokens_per_s"]:
        yield "<h2>Flags tried for the tuned llama-server</h2><table>"
        for flags, rate in document["tuning_tokens_per_s"].items():
            yield f"<tr><td><code>{html.escape(flags)}</code></td><td>{rate:.1f} tokens/s</td></tr>"
        yield "</table>"
    for workload, rates in document.get("drafting_tokens_per_s", {}).items():
        yield f"<h2>Flags tried for the llama-server that drafts: {html.escape(workload)}</h2><table>"
        for flags, rate in rates.items():
            yield f"<tr><td><code>{html.escape(flags)}</code></td><td>{rate:.1f} tokens/s of a stream</td></tr>"
        yield "</table>"
    yield "</html>"


def _draw(table: Sequence[Row], metric: str, path: Path) -> bool:
    """Draws bars of medians with whiskers from min to max. Returns False without data or without matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # optional: only reports need it

    shown = [row for row in table if metric in row.figures]
    if not shown:
        return False
    workloads = list(dict.fromkeys(row.workload for row in shown))
    servers = list(dict.fromkeys(row.server for row in shown))
    scale, unit = UNITS.get(metric, (1, "seconds"))
    columns = min(PLOT_COLUMNS, len(workloads))
    lines = -(-len(workloads) // columns)
    size = (2.4 + 2.6 * columns, 0.9 + (0.9 + 0.24 * len(servers)) * lines)
    figure = Figure(figsize=size, layout="constrained")
    # Each workload has its own scale. It starts at zero, so that the lengths of bars are comparable.
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes, workload in zip_longest(grid, workloads):
        axes.spines[["top", "right"]].set_visible(False)
        if workload is None:
            axes.set_visible(False)
            continue
        bars = [(servers.index(row.server), row.figures[metric]) for row in shown if row.workload == workload]
        axes.barh(
            [place for place, _ in bars],
            [spread.median / scale for _, spread in bars],
            color=[f"C{place}" for place, _ in bars],
            xerr=(
                [(spread.median - spread.min) / scale for _, spread in bars],
                [(spread.max - spread.median) / scale for _, spread in bars],
            ),
            error_kw={"linewidth": 0.8},
        )
        axes.set_title(workload, fontsize="medium", loc="left")
        axes.set_yticks(range(len(servers)), servers)
        axes.set_ylim(len(servers) - 0.5, -0.5)
    figure.suptitle(f"{TITLES[metric]} ({unit}; {'more' if METRICS[metric] else 'less'} is better)")
    figure.savefig(path, dpi=120)
    return True
