"""Writes the table of docs/models.md from the results of the zoo."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "bench" / "results" / "zoo.json"
BEGIN, END = "<!-- zoo: written by `make zoo` -->\n", "<!-- end of zoo -->\n"
MOVED = {"pages": "pages", "sequences": "whole sequences", "none": "nothing"}

Layouts = dict[str, dict[str, Any]]
"""The rows of one model, by configured layout."""


def put_table(page: Path, results: Path) -> None:
    """Replaces the table of the page. Raises ValueError if the comments around it are missing."""
    page.write_text(with_table(page.read_text(), json.loads(results.read_text())))


def with_table(text: str, results: dict[str, Any]) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{markdown(results['models'])}{END}{after}"


def markdown(models: dict[str, Layouts]) -> str:
    """One row for each architecture, or one for each of its models if they differ."""
    lines = ["| architecture | layout at `auto` | tiers move | result |", "|---|---|---|---|"]
    by_architecture: dict[str, dict[str, str]] = {}
    for model, layouts in models.items():
        architecture, _, form = model.rpartition("-")
        by_architecture.setdefault(architecture, {})[form] = _cells(layouts)
    for architecture, forms in sorted(by_architecture.items()):
        if len(set(forms.values())) == 1:
            lines.append(f"| `{architecture}` | {forms.popitem()[1]} |")
        else:
            lines += [f"| `{architecture}` ({form}) | {cells} |" for form, cells in sorted(forms.items())]
    return "\n".join(lines) + "\n"


def _cells(layouts: Layouts) -> str:
    auto = layouts["auto"]
    if auto.get("refused"):
        return f"- | - | refused: {_reason(auto['refused'])}"
    results = {layout: _result(row) for layout, row in layouts.items()}
    result = "right"
    if len(set(results.values())) > 1:
        result = "; ".join(f"`{layout}`: {each}" for layout, each in results.items())
    elif results["auto"] != result:
        result = results["auto"]
    return f"{auto.get('layout', '-')} | {MOVED.get(auto.get('tier', ''), '-')} | {result}"


def _result(row: dict[str, Any]) -> str:
    if row.get("died"):
        return f"fails: {row['died']}"
    if row.get("refused"):
        return f"refused: {_reason(row['refused'])}"
    if row.get("wrong"):
        return f"wrong: {', '.join(row['wrong'])}"
    quantized = row.get("quantized", "right")
    return "right" if quantized == "right" else f"right; a quantized KV cache is refused: {_reason(quantized)}"


def _reason(text: str) -> str:
    """The reason without the path of the file."""
    return re.sub(r"^.*\.gguf: ", "", text).replace("|", "\\|")
