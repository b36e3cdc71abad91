"""The table of docs/models.md is the one that `make zoo` wrote, and says what the results say."""

import json
from typing import Any

from tests.zoo.table import PAGE, RESULTS, markdown, with_table

RIGHT: dict[str, Any] = {"layout": "lanes", "tier": "pages", "quantized": "right", "notices": "one token"}
REFUSED: dict[str, Any] = {"refused": "/models/a b.gguf: it does not generate text"}


def test_the_docs_have_the_table_of_the_results() -> None:
    text = PAGE.read_text()
    assert with_table(text, json.loads(RESULTS.read_text())) == text


def row(**layouts: dict[str, Any]) -> str:
    every = {layout: layouts.get(layout, RIGHT) for layout in ("auto", "pool", "lanes")}
    return markdown({"llama-dense": every}).splitlines()[-1]


def test_a_row_names_what_is_wrong() -> None:
    assert row() == "| `llama` | lanes | pages | right |"
    wrong = RIGHT | {"wrong": {"hit": "a token"}}
    assert row(pool=wrong).endswith("| `auto`: right; `pool`: wrong: hit; `lanes`: right |")
    assert row(auto=wrong, pool=wrong, lanes=wrong).endswith("| lanes | pages | wrong: hit |")
    assert row(auto=REFUSED) == "| `llama` | - | - | refused: it does not generate text |"
    assert row(lanes={"died": "exit code -6"}).endswith("`lanes`: fails: exit code -6 |")
    quantized = RIGHT | {"quantized": "q8_0 needs flash attention"}
    assert "right; a quantized KV cache is refused: q8_0 needs" in row(auto=quantized, pool=quantized, lanes=quantized)


def test_models_of_an_architecture_share_a_row_if_they_are_alike() -> None:
    every = dict.fromkeys(("auto", "pool", "lanes"), RIGHT)
    alike = markdown({"llama-dense": every, "llama-moe": every}).splitlines()[2:]
    assert alike == ["| `llama` | lanes | pages | right |"]
    different = markdown({"llama-dense": every, "llama-moe": every | {"auto": RIGHT | {"layout": "pool"}}})
    assert [line.split("|")[1].strip() for line in different.splitlines()[2:]] == ["`llama` (dense)", "`llama` (moe)"]
