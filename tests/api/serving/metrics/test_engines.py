"""Counters of engines grow over the restarts of the engines."""

from hypothesis import given
from hypothesis import strategies as st

from api.serving.metrics.engines import EngineTotals, GrowingTotal
from scheduler.messages import Report


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 1000), min_size=1))))
def test_no_increase_counts_twice_or_is_lost(engines: list[tuple[int, list[int]]]) -> None:
    """Each engine counts from zero, and is looked at after each increase, or several times."""
    total = GrowingTotal()
    expected = 0
    for number, (times, increases) in enumerate(engines):
        value = 0
        for increase in increases:
            value, expected = value + increase, expected + increase
            for _ in range(times):
                total.update(number, value)
                assert total.total == expected


def test_a_smaller_value_of_the_same_process_id_is_another_engine() -> None:
    total = GrowingTotal()
    for value in (10, 3):
        total.update(77, value)
    assert total.total == 13


def test_the_totals_of_an_engine_survive_it() -> None:
    totals = EngineTotals()
    totals.update(1, Report({"steps": 5, "preemptions": 1}, {"hit_tokens": 40}))
    totals.update(2, Report({"steps": 2, "preemptions": 0}, {"hit_tokens": 8}))
    assert (totals["steps"], totals["preemptions"], totals["hit_tokens"], totals["merged_pages"]) == (7, 1, 48, 0)


def test_accepted_tokens_by_position_survive_engines_with_shorter_and_longer_drafts() -> None:
    totals = EngineTotals()
    assert totals.accepted_per_position == []
    totals.update(1, Report({"accepted_per_position": [5, 3]}, {}))
    totals.update(2, Report({"accepted_per_position": [1]}, {}))
    totals.update(2, Report({"accepted_per_position": [4, 2, 1]}, {}))
    assert totals.accepted_per_position == [9, 5, 1]


def test_drafted_tokens_are_added_up_by_source() -> None:
    def drafted(tokens: int, accepted: int) -> dict[str, int]:
        return {"num_drafts": 1, "draft_tokens": tokens, "accepted_draft_tokens": accepted}

    totals = EngineTotals()
    totals.update(1, Report({"draft_sources": {"suffix": drafted(9, 4)}}, {}))
    totals.update(2, Report({"draft_sources": {"suffix": drafted(3, 3), "model": drafted(2, 0)}}, {}))
    assert totals.drafted == {
        ("suffix", "accepted"): 7,
        ("suffix", "rejected"): 5,
        ("model", "accepted"): 0,
        ("model", "rejected"): 2,
    }
