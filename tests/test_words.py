"""The project uses one word for one thing, and words that a reader in a second language knows."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("api", "scheduler", "kvcache", "bench")
PROSE = ("docs", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile", "Dockerfile")
RETIRED: dict[str, tuple[str, tuple[str, ...]]] = {
    "branch": (r"\bbranch(es)?\b", ("scheduler", "kvcache")),
    "vector": (r"\bvectors?\b", CODE + PROSE),
    "tell": (r"\b(tell|tells|told)\b(?!\()", CODE + PROSE),
    "whoever": (r"\bwhoever\b", (*CODE, *PROSE, "tests")),
    "of what": (r"\bof what\b", (*CODE, *PROSE, "tests")),
    "what came of": (r"\bwhat (came|comes|became|becomes) of\b", (*CODE, *PROSE, "tests")),
}
"""Words that are not used any more, with their patterns and the places where they are not used.

The words in their place: KV handle, embedding, report or return. The other three make riddles.
"""
EXEMPT = ("tests/test_words.py", "tests/api/text/dialects/templates", "bench/results", "docs/developing.md")
"""These name the words, or hold the texts of others."""


def texts(*places: str) -> Iterator[Path]:
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            is_text = file.suffix in (".py", ".md", ".jinja") or file.name in ("Makefile", "Dockerfile")
            if is_text and not str(file.relative_to(ROOT)).startswith(EXEMPT):
                yield file


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_do_not_occur(word: str) -> None:
    pattern, places = RETIRED[word]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in texts(*places)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert found == []
