"""What earlier guesses say about the next ones."""

from scheduler.drafts.acceptance import MAX_EXPECTED, Acceptance


def test_without_evidence_it_is_the_drafters_estimate() -> None:
    assert Acceptance().expected(1, "suffix", 0.9) == 0.9
    assert Acceptance().expected(1, "suffix", 1.0) == MAX_EXPECTED


def test_a_sequence_whose_guesses_fail_is_expected_to_go_on_so() -> None:
    acceptance = Acceptance()
    for _ in range(6):
        acceptance.observe(1, "suffix", 0.9, 0, is_wrong=True)
    assert acceptance.expected(1, "suffix", 0.9) < 0.4
    assert 0.6 < acceptance.expected(2, "suffix", 0.9) < 0.9, "it says less about other sequences"
    assert acceptance.expected(1, "suffix", 0.9) < acceptance.expected(1, "suffix", 0.99) < 0.99
    assert acceptance.expected(1, "prediction", 0.9) == 0.9
    acceptance.forget(1)
    assert acceptance.expected(1, "suffix", 0.9) == acceptance.expected(2, "suffix", 0.9)


def test_a_sequence_that_copies_is_expected_to_go_on_so() -> None:
    acceptance = Acceptance()
    for _ in range(5):
        acceptance.observe(1, "suffix", 0.85, 5, is_wrong=False)
    assert acceptance.expected(1, "suffix", 0.85) > 0.97


def test_a_sequence_that_copies_does_so_after_short_matches_too() -> None:
    acceptance = Acceptance()
    before = acceptance.expected(1, "suffix", 0.5)
    for _ in range(5):
        acceptance.observe(1, "suffix", 0.96, 20, is_wrong=False)
    assert acceptance.expected(1, "suffix", 0.5) > before + 0.1
    assert acceptance.expected(2, "suffix", 0.5) == before


def test_old_evidence_is_forgotten() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.observe(1, "suffix", 0.9, 0, is_wrong=True)
    for _ in range(20):
        acceptance.observe(1, "suffix", 0.9, 10, is_wrong=False)
    assert acceptance.expected(1, "suffix", 0.9) > 0.9


def test_a_drafter_that_is_not_asked_gets_another_chance() -> None:
    acceptance = Acceptance()
    first = acceptance.mean(1, "model")
    for _ in range(5):
        acceptance.observe(1, "model", 0.9, 0, is_wrong=True)
    after = acceptance.mean(1, "model")
    assert after < first / 2
    for _ in range(500):
        acceptance.mean(1, "model")
    assert acceptance.mean(1, "model") > 1.4 * after
