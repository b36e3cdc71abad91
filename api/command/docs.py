"""Writes the generated tables of the docs: `make docs`."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from api.flags import docs as flags
from api.http import openapi
from api.http.operations import OPERATIONS

README: Final = Path(__file__).parents[2] / "README.md"
TABLES: Final[dict[str, Callable[[], str]]] = {
    "flags": flags.markdown,
    "endpoints": lambda: openapi.endpoints(OPERATIONS),
}
"""Tables by the name in the comments around them."""


def with_tables(text: str) -> str:
    """Returns the text with each table between its two comments. Raises ValueError if a comment is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by `make docs` -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}{table()}{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
