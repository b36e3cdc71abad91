"""What earlier guesses say about the next ones."""

import pytest

from scheduler.drafts.acceptance import MAX_EXPECTED, Acceptance


def expected(acceptance: Acceptance, request_id: int, source: str, estimate: float) -> float:
    (chance,) = acceptance.chances(request_id, source, [estimate])
    return chance


def test_a_token_needs_all_tokens_before_it() -> None:
    chances = Acceptance().chances(1, "suffix", [0.9, 0.5, 0.8])
    assert chances == pytest.approx([0.9, 0.45, 0.36])


def test_each_token_counts_with_its_own_estimate() -> None:
    acceptance = Acceptance()
    for request_id in range(100):
        acceptance.observe(request_id, "suffix", [0.92, 0.5, 0.92], 1, is_wrong=True)
    assert expected(acceptance, 100, "suffix", 0.92) > 0.95
    assert expected(acceptance, 100, "suffix", 0.5) < 0.3, "the second token was wrong, nothing is known of the third"


def test_without_evidence_it_is_the_drafters_estimate() -> None:
    assert expected(Acceptance(), 1, "suffix", 0.9) == 0.9
    assert expected(Acceptance(), 1, "suffix", 1.0) == MAX_EXPECTED


def test_a_sequence_whose_guesses_fail_is_expected_to_go_on_so() -> None:
    acceptance = Acceptance()
    for _ in range(6):
        acceptance.observe(1, "suffix", [0.9], 0, is_wrong=True)
    assert expected(acceptance, 1, "suffix", 0.9) < 0.6
    assert 0.7 < expected(acceptance, 2, "suffix", 0.9) < 0.9, "it says less about other sequences"
    assert expected(acceptance, 1, "suffix", 0.9) < expected(acceptance, 1, "suffix", 0.99) < 0.99
    assert expected(acceptance, 1, "prediction", 0.9) == 0.9
    acceptance.forget(1)
    assert expected(acceptance, 1, "suffix", 0.9) == expected(acceptance, 2, "suffix", 0.9)


def test_a_sequence_that_copies_is_expected_to_go_on_so() -> None:
    acceptance = Acceptance()
    for _ in range(5):
        acceptance.observe(1, "suffix", [0.85] * 5, 5, is_wrong=False)
    assert expected(acceptance, 1, "suffix", 0.85) > 0.95


def test_a_sequence_that_copies_does_so_after_short_matches_too() -> None:
    acceptance = Acceptance()
    before = expected(acceptance, 1, "suffix", 0.5)
    for _ in range(5):
        acceptance.observe(1, "suffix", [0.96] * 20, 20, is_wrong=False)
    assert expected(acceptance, 1, "suffix", 0.5) > before + 0.1
    assert expected(acceptance, 2, "suffix", 0.5) == before


def test_old_evidence_is_forgotten() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.observe(1, "suffix", [0.9], 0, is_wrong=True)
    for _ in range(20):
        acceptance.observe(1, "suffix", [0.9] * 10, 10, is_wrong=False)
    assert expected(acceptance, 1, "suffix", 0.9) > 0.9


def test_a_drafter_that_is_not_asked_gets_another_chance() -> None:
    acceptance = Acceptance()
    first = acceptance.mean(1, "model")
    for _ in range(5):
        acceptance.observe(1, "model", [0.9], 0, is_wrong=True)
    after = acceptance.mean(1, "model")
    assert after < first / 2
    for _ in range(500):
        acceptance.mean(1, "model")
    assert acceptance.mean(1, "model") > 1.4 * after
