"""Writes the generated tables of the docs: `make docs`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.flags import docs as flags
from api.http import openapi
from api.http.operations import OPERATIONS
from api.protocols import other_servers

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
API: Final = ROOT / "docs" / "api.md"
RUNNING: Final = ROOT / "docs" / "running.md"


@dataclass(frozen=True, slots=True)
class Table:
    """A generated table, between two comments of a page."""

    name: str
    """As the comments have it."""
    page: Path
    markdown: Callable[[], str]

    def put_into(self, text: str) -> str:
        """The page's text with the table as generated now. Raises ValueError if the comments are missing."""
        begin, end = f"<!-- {self.name}: written by `make docs` -->\n", f"<!-- end of {self.name} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        return f"{before}{begin}{self.markdown()}{end}{after}"


TABLES: Final = (
    Table("endpoints", API, lambda: openapi.endpoints(OPERATIONS)),
    Table("other servers' fields", API, other_servers.markdown),
    Table("flags", RUNNING, flags.markdown),
)


if __name__ == "__main__":
    for table in TABLES:
        table.page.write_text(table.put_into(table.page.read_text()))
