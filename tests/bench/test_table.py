"""Medians, spreads, and the first server compared with the others."""

from bench.stats import Measures
from bench.table import Block, Row, Spread, rows, spread, verdicts


def blocks(server: str, *rates: float | None, workload: str = "uniform", ttft: float = 1.0) -> list[Block]:
    """A block for each rate. A block with the rate None failed."""
    made = []
    for number, rate in enumerate(rates):
        figures: Measures = {"tokens_per_s": rate or 1.0, "ttft_p99_s": ttft, "itl_p99_s": None}
        made.append(Block(server, workload, number, figures, "" if rate else "HTTP 500"))
    return made


def row(table: list[Row], server: str) -> Row:
    (found,) = (each for each in table if each.server == server)
    return found


def test_a_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([]) is None


def test_ratios_are_taken_within_a_repetition() -> None:
    table = rows([*blocks("ours", 20.0, 40.0, 90.0, ttft=2.0), *blocks("theirs", 10.0, 10.0, 30.0, ttft=1.0)])
    assert row(table, "ours").figures["tokens_per_s"] == Spread(40.0, 20.0, 90.0, 3)
    assert row(table, "ours").lead == {}
    lead = row(table, "theirs").lead
    assert lead["tokens_per_s"] == Spread(3.0, 2.0, 4.0, 3)  # not 40 / 10
    assert lead["ttft_p99_s"] == Spread(0.5, 0.5, 0.5, 3)  # a longer wait is worse
    assert "itl_p99_s" not in row(table, "ours").figures


def test_a_failed_block_does_not_count_but_its_error_is_reported() -> None:
    table = rows([*blocks("ours", 20.0, 40.0), *blocks("theirs", 10.0, None), *blocks("none", None)])
    assert row(table, "theirs").lead["tokens_per_s"] == Spread(2.0, 2.0, 2.0, 1)
    assert row(table, "theirs").figures["tokens_per_s"].count == 1
    assert row(table, "theirs").troubles == ("HTTP 500",)
    assert (row(table, "none").figures, row(table, "none").lead) == ({}, {})


def test_the_bare_loop_is_a_limit_and_not_a_rival() -> None:
    measured = [*blocks("bare-loop", 80.0, 90.0), *blocks("ours", 40.0, 90.0), *blocks("theirs", 20.0, 30.0)]
    table = rows(measured, limit="bare-loop")
    assert row(table, "ours").of_limit == {"tokens_per_s": Spread(0.75, 0.5, 1.0, 2)}
    assert row(table, "bare-loop").of_limit == {}
    assert row(table, "ours").lead == {}
    best = {v["metric"]: v for v in verdicts(table, "ours", ["ours", "theirs"])}
    assert best["tokens_per_s"]["best"] == "theirs"
    assert best["tokens_per_s"]["lead"].median == 2.5


def test_the_best_of_the_others_is_found_for_each_metric() -> None:
    measured = [*blocks("ours", 10.0), *blocks("fast", 20.0, ttft=4.0), *blocks("prompt", 5.0, ttft=0.5)]
    best = {v["metric"]: (v["best"], v["lead"].median) for v in verdicts(rows(measured), "ours", ["fast", "prompt"])}
    assert best == {"tokens_per_s": ("fast", 0.5), "ttft_p99_s": ("prompt", 0.5)}


def test_servers_keep_the_order_of_the_first_repetition() -> None:
    unordered = [Block("b", "x", 1, {}), Block("a", "x", 1, {}), Block("a", "x", 0, {}), Block("b", "x", 0, {})]
    assert [each.server for each in rows(unordered)] == ["a", "b"]
    assert rows([]) == []
