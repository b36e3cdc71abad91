"""The failures that docs/families.md explains.

A row of its table has a template (`*` stands for any text), what fails, and the reason. What fails is a list of: lines
of the peer's test file, kinds of conversations, `compile`, `grammar`. `*` stands for everything.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tests.families.records import Record

HEADING: Final = "## What is not right, and why"


@dataclass(frozen=True, slots=True)
class Reason:
    template: str
    failures: frozenset[str]
    why: str

    def covers(self, template: str, failure: str) -> bool:
        return fnmatchcase(template, self.template) and not self.failures.isdisjoint({failure, "*"})


def reasons_of(page: str) -> list[Reason]:
    """The rows of the table under HEADING. Raises ValueError without the heading."""
    if HEADING not in page:
        raise ValueError(f"docs/families.md has no heading {HEADING!r}")
    section = re.split(r"^## ", page.split(HEADING)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[0] != "template" and set(cells[0]) != {"-"}:
            failures = frozenset(word.strip().strip("`") for word in cells[1].split(","))
            found.append(Reason(cells[0].strip("`"), failures, cells[2]))
    return found


def failures_of(record: Record) -> Iterator[tuple[str, str]]:
    """Template and failure, of everything that counts and is not right."""
    for template in record["templates"]:
        name = template["template"].removesuffix(".jinja")
        if not template["compiles"]:
            yield name, "compile"
        yield from ((name, kind) for kind, why in template["renders"].items() if why)
        yield from ((name, str(case["line"])) for case in template["cases"] if case["verdict"] == "failed")
        if template["grammar"]:
            yield name, "grammar"


def unexplained(record: Record, reasons: Sequence[Reason]) -> list[tuple[str, str]]:
    return [each for each in failures_of(record) if not any(reason.covers(*each) for reason in reasons)]


def needless(record: Record, reasons: Sequence[Reason]) -> list[Reason]:
    """Reasons for failures that do not exist any more."""
    failures = list(failures_of(record))
    return [reason for reason in reasons if not any(reason.covers(*each) for each in failures)]
