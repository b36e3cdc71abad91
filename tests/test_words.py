"""The project uses one word for one thing, and words that a reader in a second language knows."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    "a KV handle is no branch": (r"\bbranch(es)?\b", ("scheduler", "kvcache")),
    "an embedding is no vector": (r"\bvectors?\b", ("api", "scheduler", "kvcache", "bench", "docs", "README.md")),
    "report, return or send": (r"\b(tell|tells|told)\b(?! apart)", ("api", "scheduler", "kvcache", "bench", "docs", "README.md")),
    "whoever": (r"\bwhoever\b", ()),
    "of what": (r"\bof what\b", ()),
    "what came of": (r"\bwhat (came|comes|becomes|became) of\b", ()),
}
"""By the plain word or by itself: the pattern, and where it holds; everywhere if nowhere is named."""


def files(*folders: str) -> list[Path]:
    """The texts of the project in these folders, without this test and recorded data."""
    names = subprocess.check_output(["git", "ls-files", *folders], cwd=ROOT, text=True).split("\n")
    kept = [name for name in names if name.endswith((".py", ".md", "Makefile", "Dockerfile", ".jinja"))]
    return [ROOT / name for name in kept if not name.startswith(("bench/results/", "tests/api/text/dialects/templates/"))]


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_do_not_occur(word: str) -> None:
    pattern, folders = RETIRED[word]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(*folders)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert found == []
