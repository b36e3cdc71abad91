"""The KV that the drafter of a second model thinks it has is what was computed, whatever happens to its sequences."""

import logging
import math
from collections.abc import Sequence as Items

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.tree import TOKEN_BYTES
from scheduler.drafts.drafter import NO_DRAFT
from scheduler.drafts.model import (
    CATCH_UP_TOKENS,
    HALF_LIFE,
    MIN_PROBABILITY,
    PAUSE_SECONDS,
    STALE_CALLS,
    Guess,
    ModelDrafter,
    Piece,
)
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import StepError
from scheduler.sequence import Sequence

VOCAB, EOG = 40, 7
MAX_LENGTH = 600


def guess(tokens: list[int]) -> Guess:
    """Returns a token that depends on all `tokens`, sometimes an unlikely one, an end, or an unknown one."""
    value = 1
    for token in tokens:
        value = (value * 31 + token) % 10_007
    return Guess(value % (VOCAB + 1), 0.1 if value % 11 == 0 else 0.5 + value % 50 / 100)


def expected(known: list[int], limit: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < limit:
        token, probability = guess(known + tokens)
        if probability < MIN_PROBABILITY or token in (EOG, VOCAB):
            break
        tokens.append(token)
    return tokens


class FakeModel:
    """Guesses from the tokens in its memory, so that a wrong token in it changes the guesses."""

    max_length = MAX_LENGTH

    def __init__(self, num_ids: int = 3, num_cells: int = 10_000) -> None:
        self.num_ids = num_ids
        self.num_cells = num_cells
        self.memory: list[list[int]] = [[] for _ in range(num_ids)]
        self.steps: list[int] = []
        """Number of tokens of each step."""
        self.fails = False
        self.cuts = True
        self.wants_more = False
        self.can_grow = True
        self.grown: tuple[int, list[int]] | None = None
        """Further cells, and the sequence ids that lose their KV."""
        self.now = 0.0
        self.step_seconds = 0.0

    def grow(self) -> bool:
        self.wants_more = True
        return self.can_grow

    def settle(self) -> list[int]:
        if self.grown is None:
            return []
        (cells, lost), self.grown = self.grown, None
        self.num_cells += cells
        for sequence_id in lost:
            self.memory[sequence_id].clear()
        return lost

    def compute(self, pieces: Items[Piece]) -> list[Guess]:
        assert len({piece.sequence_id for piece in pieces}) == len(pieces)
        guesses = []
        for piece in pieces:
            memory = self.memory[piece.sequence_id]
            assert piece.start == len(memory)
            memory += np.frombuffer(piece.tokens, "<i4").tolist()
            assert piece.tokens
            assert max(memory) < VOCAB
            if piece.guesses:
                guesses.append(guess(memory))
        assert sum(map(len, self.memory)) <= self.num_cells
        self.steps.append(sum(len(piece.tokens) for piece in pieces) // TOKEN_BYTES)
        assert self.steps[-1] <= CATCH_UP_TOKENS
        self.now += self.step_seconds
        if self.fails:
            raise StepError("no reason")
        return guesses

    def cut(self, sequence_id: int, num_tokens: int) -> bool:
        if num_tokens and not self.cuts:
            self.memory[sequence_id][num_tokens // 2 :] = []
            return False
        self.memory[sequence_id][num_tokens:] = []
        return True


def drafter(model: FakeModel) -> ModelDrafter:
    return ModelDrafter(model, vocab_size=VOCAB, eog_tokens=frozenset({EOG}), clock=lambda: model.now)


def sequence(request_id: int, tokens: list[int], salt: str = "") -> Sequence:
    submit = Submit(request_id, tokens, 10_000, SamplingParams(temperature=0.0), cache_salt=salt)
    return Sequence(submit, request_id)


def known(one: Sequence) -> list[int]:
    return [int(token) for token in np.frombuffer(bytes(one.known), "<i4")]


def prompt(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB, length)]


def check(drafts: ModelDrafter, model: FakeModel) -> None:
    for slot in drafts._slots:
        assert np.frombuffer(bytes(slot.tokens), "<i4").tolist() == model.memory[slot.id]
    owners = [slot.owner for slot in drafts._slots if slot.owner is not None]
    assert len(owners) == len(set(owners))


@settings(max_examples=60)
@given(st.data())
def test_the_memory_holds_what_the_drafter_thinks(data: st.DataObject) -> None:
    model = FakeModel(num_ids=data.draw(st.integers(1, 4)), num_cells=data.draw(st.sampled_from([40, 300, 2000])))
    drafts = drafter(model)
    running: list[Sequence] = []
    waiting: list[Sequence] = []
    for number in range(data.draw(st.integers(1, 40))):
        action = data.draw(
            st.sampled_from(["new", "draft", "draft", "draft", "append", "end", "preempt", "resume", "odd"])
        )
        if action == "new":
            shared = prompt(data.draw(st.integers(0, 2)), data.draw(st.integers(1, 400)))
            own = data.draw(st.lists(st.integers(0, VOCAB), max_size=3))  # VOCAB is a token only the main model has
            running.append(sequence(number, shared + own, data.draw(st.sampled_from(["", "salt"]))))
        elif action == "append" and running:
            for token in data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)):
                data.draw(st.sampled_from(running)).append(token)
        elif action == "end" and running:
            drafts.ended(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif action == "preempt" and running:
            waiting.append(running.pop())
            drafts.ended(waiting[-1])
        elif action == "resume" and waiting:
            running.append(waiting.pop(0))
        elif action == "odd":
            model.fails = data.draw(st.booleans()) and data.draw(st.booleans())
            model.cuts, model.can_grow = data.draw(st.booleans()), data.draw(st.booleans())
            model.now += data.draw(st.sampled_from([0.0, PAUSE_SECONDS]))
            lost = data.draw(st.lists(st.integers(0, model.num_ids - 1), unique=True))
            model.grown = (data.draw(st.integers(0, 500)), lost)
        elif action == "draft" and running:
            chosen = data.draw(st.lists(st.sampled_from(running), unique_by=id))
            limits = [data.draw(st.integers(0, 6)) for _ in chosen]
            for one, limit, draft in zip(chosen, limits, drafts.draft(chosen, limits), strict=True):
                if draft is not NO_DRAFT:
                    assert draft.tokens == expected(known(one), limit)
                    assert len(draft.estimates) == len(draft.tokens)
                    assert all(MIN_PROBABILITY <= estimate <= 1 for estimate in draft.estimates)
                elif limit and accepted_by(model, one) and not model.fails and not paused(drafts, model):
                    assert holds_no_place(drafts, model, one) or not expected(known(one), limit)
                if draft.tokens:
                    kept = data.draw(st.integers(0, len(draft.tokens)))
                    for token in [*draft.tokens[:kept], data.draw(st.integers(0, VOCAB - 1))]:
                        one.append(token)
        check(drafts, model)


def accepted_by(model: FakeModel, one: Sequence) -> bool:
    return VOCAB not in known(one) and one.num_known < MAX_LENGTH


def paused(drafts: ModelDrafter, model: FakeModel) -> bool:
    return model.now < drafts._paused_until


def holds_no_place(drafts: ModelDrafter, model: FakeModel, one: Sequence) -> bool:
    """Whether the sequence has no sequence id or no cells, or is still being computed."""
    mine = [slot for slot in drafts._slots if slot.owner == one.request_id]
    return not mine or mine[0].num_tokens < one.num_known


@pytest.mark.parametrize("accepted", range(5))
def test_only_what_is_new_is_computed(accepted: int) -> None:
    model = FakeModel()
    drafts = drafter(model)
    one = sequence(1, likely_prompt(4))
    (draft,) = drafts.draft([one], [4])
    assert draft.tokens == expected(known(one), 4)
    assert model.steps == [one.num_known, 1, 1, 1]
    model.steps.clear()
    for token in [*draft.tokens[:accepted], 3]:
        one.append(token)
    drafts.draft([one], [1])
    assert model.steps == [2 if accepted == 4 else 1]  # the last drafted token was never computed


def likely_prompt(limit: int) -> list[int]:
    """Returns a prompt after which a draft is `limit` tokens long."""
    return next(tokens for seed in range(100) if len(expected(tokens := prompt(seed, 50), limit)) == limit)


def test_sequences_are_drafted_for_together() -> None:
    model = FakeModel()
    several = [sequence(number, likely_prompt(3)[:-1] + [number]) for number in range(3)]
    drafts = drafter(model).draft(several, [3, 3, 3])
    assert [draft.tokens for draft in drafts] == [expected(known(one), 3) for one in several]
    assert len(model.steps) <= 3


def test_a_long_prompt_is_computed_over_several_calls_while_others_have_drafts() -> None:
    model = FakeModel()
    drafts = drafter(model)
    short, long = sequence(1, likely_prompt(2)), sequence(2, prompt(5, 2 * CATCH_UP_TOKENS))
    while not expected(known(long), 2):
        long.append(3)
    calls = 0
    while True:
        calls += 1
        first, second = drafts.draft([long, short], [2, 2])
        assert second.tokens == expected(known(short), 2)
        if first is not NO_DRAFT:
            break
    assert first.tokens == expected(known(long), 2)
    assert calls == 3


def test_more_sequences_than_ids_leave_the_first_ones_in_peace() -> None:
    model = FakeModel(num_ids=2)
    drafts = drafter(model)
    three = [sequence(number, likely_prompt(1)) for number in range(3)]
    for _ in range(STALE_CALLS):
        assert [bool(draft.tokens) for draft in drafts.draft(three, [1, 1, 1])] == [True, True, False]
    drafts.ended(three[0])
    assert [bool(draft.tokens) for draft in drafts.draft(three[1:], [1, 1])] == [True, True]


def test_a_sequence_that_is_not_drafted_for_any_more_gives_its_place_away() -> None:
    drafts = drafter(FakeModel(num_ids=1))
    first, second = (sequence(number, likely_prompt(1)) for number in range(2))
    drafts.draft([first], [1])
    answers = [bool(drafts.draft([second], [1])[0].tokens) for _ in range(STALE_CALLS + 1)]
    assert answers == [False] * STALE_CALLS + [True]


def test_a_conversation_goes_on_from_its_last_turn_unless_the_salt_differs() -> None:
    model = FakeModel()
    drafts = drafter(model)
    turn = sequence(1, likely_prompt(1))
    drafts.draft([turn], [1])
    drafts.ended(turn)
    for number, salt, computed in ((2, "", 2), (3, "other", turn.num_known + 2)):
        model.steps.clear()
        following = sequence(number, [*known(turn), 3, 4], salt)
        drafts.draft([following], [1])
        drafts.ended(following)
        assert model.steps == [computed]


def test_sequences_that_do_not_fit_wait_for_more_cells() -> None:
    model = FakeModel(num_cells=60)
    drafts = drafter(model)
    two = [sequence(number, likely_prompt(1)) for number in range(2)]
    assert [bool(draft.tokens) for draft in drafts.draft(two, [1, 1])] == [True, False]
    assert model.wants_more
    model.grown = (60, [0])
    assert [bool(draft.tokens) for draft in drafts.draft(two, [1, 1])] == [True, True]


def test_the_oldest_sequences_get_the_cells_of_a_memory_that_cannot_grow() -> None:
    model = FakeModel(num_cells=120)
    model.can_grow = False
    drafts = drafter(model)
    old, young = (sequence(number, likely_prompt(1)) for number in range(2))
    for _ in range(60):
        first, second = drafts.draft([young, old], [1, 1])
        assert second.tokens == expected(known(old), 1)
        for one in (young, old):
            one.append(3)
            while not expected(known(one), 1):
                one.append(3)
    assert first is NO_DRAFT


def test_ended_sequences_make_room() -> None:
    model = FakeModel(num_cells=60)
    drafts = drafter(model)
    first, second = sequence(1, likely_prompt(1)), sequence(2, prompt(77, 40) + [1])
    drafts.draft([first], [1])
    drafts.ended(first)
    drafts.draft([second], [1])
    assert not model.wants_more
    assert [len(memory) for memory in model.memory] == [0, 41, 0]


def test_a_failed_step_costs_only_drafts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "cortex.engine")
    model = FakeModel()
    drafts = drafter(model)
    one = sequence(1, likely_prompt(2))
    for _ in range(2):
        model.fails = True
        assert drafts.draft([one], [2]) == [NO_DRAFT]
        model.fails = False
        model.steps.clear()
        assert drafts.draft([one], [2]) == [NO_DRAFT]
        assert not model.steps
        model.now += PAUSE_SECONDS
        assert drafts.draft([one], [2])[0].tokens == expected(known(one), 2)
    assert len(caplog.records) == 1
    assert "no reason" in caplog.text


def test_logits_that_are_no_numbers_give_no_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    monkeypatch.setattr(model, "compute", lambda pieces: [Guess(3, math.nan) for _ in pieces])
    assert drafter(model).draft([sequence(1, [1, 2])], [4]) == [NO_DRAFT]


def test_seconds_are_learned_and_one_disturbed_step_counts_little() -> None:
    model = FakeModel()
    drafts = drafter(model)
    model.step_seconds = 1.0
    drafts.warm_up()
    assert drafts.seconds(1, 4) == pytest.approx(4.0)
    assert drafts.seconds(100, 2) == pytest.approx(2.0)
    assert drafts.seconds(0, 2) == 0.0
    one = sequence(1, likely_prompt(1))
    drafts.draft([one], [1])
    model.step_seconds = 100.0
    one.append(1)
    drafts.draft([one], [1])
    assert drafts.seconds(1, 1) == pytest.approx(1.1)
    model.step_seconds = 0.5
    for _ in range(50):
        one.append(1)
        drafts.draft([one], [1])
    assert drafts.seconds(1, 1) == pytest.approx(0.5, abs=0.05)
    before = drafts.seconds(1, 1)
    model.now += HALF_LIFE
    assert drafts.seconds(1, 1) == pytest.approx(before / 2), "it is tried again"
    one.append(1)
    drafts.draft([one], [1])
    assert drafts.seconds(1, 1) == pytest.approx(before, rel=0.1)
