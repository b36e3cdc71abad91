"""What a request asked for and did not get. The answer has it in the header `cortex-warning`."""

from collections.abc import Iterable, Sequence
from typing import Final

HEADER: Final = "cortex-warning"
MAX_CHARACTERS: Final = 512
"""Maximum length of the header's value."""


def listing(what: str, names: Iterable[str]) -> list[str]:
    """A warning that lists each of the names once; no warning without names."""
    distinct = list(dict.fromkeys(names))
    return [f"{what}: {', '.join(distinct)}"] if distinct else []


def header_value(warnings: Sequence[str]) -> str:
    """All warnings as one line of printable ASCII. Other characters become question marks, a long line is cut."""
    text = "".join(character if " " <= character <= "~" else "?" for character in "; ".join(warnings))
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."
