"""The learned durations of passes."""

import pytest

from scheduler.drafts.passes import PassSeconds


def true_seconds(rows: int) -> float:
    """About those of a small model on two cores."""
    return 0.005 + 0.0045 * rows if rows < 64 else rows / 250


def test_the_first_estimate_is_a_line_to_the_speed_of_prompts() -> None:
    passes = PassSeconds(1 / 250, 0.009)
    assert passes(1) == pytest.approx(0.009)
    assert passes(64) == pytest.approx(64 / 250)
    assert passes(16) == pytest.approx(0.009 + 15 / 63 * (passes(64) - 0.009))
    assert passes(128) == pytest.approx(2 * passes(64))


def test_it_learns_the_numbers_of_rows_that_occur() -> None:
    passes = PassSeconds(1 / 100, 0.009)
    for _ in range(40):
        for rows in (1, 9, 17, 33):
            passes.observe([rows], true_seconds(rows))
    for rows in (1, 9, 17, 33):
        assert passes(rows) == pytest.approx(true_seconds(rows), rel=0.1)


def test_a_slower_machine_slows_all_passes_down() -> None:
    passes = PassSeconds(1 / 250, 0.009)
    for _ in range(50):
        passes.observe([1], 0.009)
    before = passes(32) / passes(1)
    for _ in range(50):
        passes.observe([1], 0.018)
    assert passes(1) == pytest.approx(0.018, rel=0.01)
    assert 0.6 * before < passes(32) / passes(1) <= before, "slower by nearly as much, though it was not seen"


def test_larger_passes_are_tried_again_some_time() -> None:
    passes = PassSeconds(1 / 100, 0.009)
    for _ in range(1000):
        passes.observe([16], true_seconds(16))
        passes.hope(16)
    assert passes(64) < 1.01 * true_seconds(16) / 16 * 64
    assert passes(16) == pytest.approx(true_seconds(16), rel=0.01)
    assert passes(1) < 0.012


def test_a_single_long_step_changes_little() -> None:
    passes = PassSeconds(1 / 250, 0.009)
    passes.observe([1], 9.0)
    assert passes(1) < 0.011


def test_a_step_of_two_passes_is_the_sum() -> None:
    passes = PassSeconds(1 / 250, 0.009)
    for _ in range(60):
        passes.observe([4], 0.02)
        passes.observe([4, 16], 0.02 + 0.08)
    assert passes(4) == pytest.approx(0.02, rel=0.05)
    assert passes(16) == pytest.approx(0.08, rel=0.05)


def test_slow_first_steps_hardly_change_what_a_longer_step_costs() -> None:
    passes = PassSeconds(1 / 250, 0.009)
    before = passes(16) / passes(1)
    for _ in range(3):
        passes.observe([1], 0.027)
    assert 0.85 * before < passes(16) / passes(1) <= before


def test_each_row_attends_to_its_context() -> None:
    passes = PassSeconds(1 / 250, 0.009, cell_share=0.0002)
    assert passes.attention(1000, 1) == pytest.approx(0.0002 * 1000 * 0.009)
    assert passes.attention(1000, 32) == pytest.approx(32 * passes.attention(1000, 1))
    assert passes.attention(1000, 64) < passes.attention(1000, 63), "llama.cpp computes blocks of 64 rows"
    assert PassSeconds(1 / 250, 0.009).attention(1000, 32) == 0


def test_expected_attention_makes_no_pass_slower() -> None:
    passes = PassSeconds(1 / 250, 0.009, cell_share=0.0002)
    for context in (100, 2000) * 30:
        attention = passes.attention(context, 1)
        passes.observe([1], 0.009 + 0.0002 * 0.009 * context, attention)
    assert passes(1) == pytest.approx(0.009, rel=0.01)
    assert passes.attention(1000, 1) == pytest.approx(0.0018, rel=0.01)


def test_a_slower_machine_slows_attention_down() -> None:
    passes = PassSeconds(1 / 250, 0.009, cell_share=0.0002)
    for _ in range(50):
        passes.observe([1], 2 * (0.009 + 0.0018), passes.attention(1000, 1))
    assert passes.attention(1000, 1) > 1.6 * 0.0018
