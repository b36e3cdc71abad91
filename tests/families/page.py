"""Writes the table of docs/families.md from the results."""

import json
from pathlib import Path
from typing import Final

from tests.families.records import Record

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "families.md"
RESULTS: Final = ROOT / "bench" / "results" / "families.json"
BEGIN: Final = "<!-- families: written by `make families` -->\n"
END: Final = "<!-- end of families -->\n"
_HEAD: Final = """\
| template | learned | renders | cases | own calls | as tokens |
|---|---|---|---|---|---|
"""


def put_table(page: Path, results: Path) -> None:
    """Replaces the table of the page. Raises ValueError if the comments around it are missing."""
    page.write_text(with_table(page.read_text(), json.loads(results.read_text())))


def with_table(text: str, record: Record) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{record['summary'].capitalize()}.\n\n{markdown(record['templates'])}{END}{after}"


def markdown(templates: list[Record]) -> str:
    """One row for each template."""
    return _HEAD + "".join(f"| {' | '.join(map(_escaped, _cells(template)))} |\n" for template in templates)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _cells(template: Record) -> list[str]:
    name = f"{template['template'].removesuffix('.jinja')}"
    if not template["compiles"]:
        return [name, f"does not compile: {template['error']}", "-", "-", "-", "-"]
    return [
        name,
        template["learned"],
        _renders(template["renders"]),
        _share(template["passed"], template),
        _own_calls(template),
        _under_controls(template),
    ]


def _renders(renders: dict[str, str]) -> str:
    failed = [kind for kind, why in renders.items() if why]
    return f"not {', '.join(failed)}" if failed else "all"


def _share(num_right: int, template: Record) -> str:
    measured = template["passed"] + template["failed"]
    return f"{num_right} of {measured}" if measured else "-"


def _own_calls(template: Record) -> str:
    if template["grammar"] is None:
        return "-"
    if template["grammar"]:
        return "refused"
    return {None: "one", "": "one and two"}.get(template["grammar_two"], "one; two are refused")


def _under_controls(template: Record) -> str:
    cells = [_share(template["passed_under_controls"], template)]
    if template["grammar_under_controls"] is not None:
        cells.append("own call refused" if template["grammar_under_controls"] else "own call")
    return ", ".join(cell for cell in cells if cell != "-") or "-"
