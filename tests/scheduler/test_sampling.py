"""Sampling, compared with a plain reference: softmax and sort in double precision."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.failures import GrammarError, InvalidLogitsError, RequestError
from scheduler.messages import SamplingParams
from scheduler.sampling import Mask, SamplerState, sample
from tests.scheduler.rows import NO_EOG, ROWS, Row, softmax

ALMOST_ONE = float(np.nextafter(1.0, 0.0))


class FixedDraw(SamplerState):
    """A state with a fixed random number."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        super().__init__(params, list(prompt))
        self.uniform = 0.0

    def draw(self, stream: int = 0) -> float:
        return self.uniform


def pick(row: Row, state: SamplerState, eog: Sequence[int] = ()) -> int:
    [token] = sample(row[np.newaxis], [state], np.array(eog, dtype=np.intp))
    assert isinstance(token, int), token
    return token


class Reference:
    """The candidates, best first, and their probabilities. `is_close` if a rounding error may move a cut."""

    def __init__(self, row: Row, params: SamplingParams) -> None:
        logits = row.astype(np.float64)
        order = np.argsort(-logits, kind="stable")
        if params.top_k > 0:
            order = order[: params.top_k]
        probabilities = softmax(logits[order])
        mass = np.cumsum(probabilities)
        margins = [1.0]
        if params.top_p < 1.0:
            margins.append(float(np.abs(mass - params.top_p).min()))
            order = order[: int(np.argmax(mass >= params.top_p)) + 1]
        if params.min_p > 0.0:
            relative = probabilities[: len(order)] / probabilities[0]
            distances = np.abs(relative - params.min_p)
            margins.append(float(distances[distances > 0].min(initial=1.0)))  # the best is exactly at 1
            order = order[: max(1, int((relative >= params.min_p).sum()))]
        self.is_close = min(margins) < 1e-6
        if not 0 < params.top_k < len(row) and params.top_p >= 1.0 and params.min_p <= 0.0:
            order = np.arange(len(row))  # without a cut, the order is the vocabulary's
        self.tokens = order
        self.shares = softmax(logits[order] / params.temperature)


def assert_exact(row: Row, params: SamplingParams) -> int:
    """Check that a number in the middle of each candidate's interval gives that candidate, as in the reference.

    A token with an equal logit is accepted too. Returns the number of distinct tokens.
    """
    reference = Reference(row, params)
    if reference.is_close:
        return 0
    state = FixedDraw(params)
    ends = np.cumsum(reference.shares)
    reachable = np.flatnonzero(reference.shares > 1e-5)
    if len(reference.tokens) > 4096 and params.top_p < 1.0:  # then the candidates are unordered
        return assert_same_set(row, state, reference)
    picked = []
    for i in reachable if len(reachable) < 50 else reachable[:: len(reachable) // 50]:
        state.uniform = float(ends[i] - reference.shares[i] / 2)
        token = pick(row, state)
        assert row[token] == row[reference.tokens[i]]
        picked.append(token)
    assert len(set(picked)) == len(picked)
    state.uniform = 0.0
    first = pick(row, state)
    state.uniform = ALMOST_ONE
    last = pick(row, state)
    assert first in reference.tokens or row[first] == row[reference.tokens[0]]
    assert row[last] >= row[reference.tokens].min()
    assert row[last] > -np.inf
    return len(picked)


def assert_same_set(row: Row, state: FixedDraw, reference: Reference) -> int:
    """Check that only candidates are drawn. Returns the number of distinct ones."""
    found = set()
    for uniform in np.linspace(0, ALMOST_ONE, 200):
        state.uniform = float(uniform)
        found.add(pick(row, state))
    assert found <= set(reference.tokens.tolist())
    return len(found)


SIZES = (1, 2, 63, 64, 65, 300, 1000, 4035)
CUTS: list[dict[str, float]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.02},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40},
    {"top_k": 900},
    {"top_k": 100_000},
    {"min_p": 0.1},
    {"min_p": 0.9},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 64, "min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.03},
]


def params_of(cut: dict[str, float], temperature: float = 1.0) -> SamplingParams:
    return dataclasses.replace(SamplingParams(temperature=temperature), **cut)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_random_rows_are_sampled_like_the_reference(size: int, cut: dict[str, float]) -> None:
    random = np.random.default_rng(size)
    num_distinct = 0
    for scale, temperature in ((0.3, 1.0), (2.0, 0.7), (6.0, 1.6), (3.0, 0.2)):
        row = (random.normal(size=size) * scale).astype(np.float32)
        num_distinct += assert_exact(row, params_of(cut, temperature))
    assert num_distinct >= 1


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_large_vocabulary_is_sampled_like_the_reference(cut: dict[str, float]) -> None:
    random = np.random.default_rng(7)
    flat = (random.normal(size=49_152) * 0.5).astype(np.float32)
    peaked = (random.normal(size=49_152) * 4).astype(np.float32)
    assert assert_exact(flat, params_of(cut)) + assert_exact(peaked, params_of(cut, 0.8)) >= 1


@given(
    values=st.lists(
        st.sampled_from([-math.inf, -30.0, -2.5, -1.0, 0.0, 0.25, 1.0, 3.0, 12.0]), min_size=1, max_size=200
    ),
    top_k=st.integers(0, 250),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.001, 0.03, 0.11, 0.4, 0.99]),
    temperature=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
)
def test_rows_with_ties_and_impossible_tokens_are_sampled_like_the_reference(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    values[0] = max(values[0], 0.0)  # at least one token is possible
    row = np.array(values, dtype=np.float32)
    assert_exact(row, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))


def kept(row: Row, params: SamplingParams) -> set[int]:
    """Returns all tokens that can be drawn."""
    state = FixedDraw(params)
    tokens = set()
    for uniform in np.linspace(0.0, ALMOST_ONE, 4 * len(row)):
        state.uniform = float(uniform)
        tokens.add(pick(row, state))
    return tokens


def test_a_flat_row_keeps_as_many_tokens_as_top_p_needs() -> None:
    row = np.zeros(1000, dtype=np.float32)
    assert len(kept(row, SamplingParams(top_p=0.3335))) == 334
    assert len(kept(row, SamplingParams(top_p=0.0005))) == 1
    assert len(kept(row, SamplingParams(top_p=0.9995))) == 1000
    assert len(kept(row, SamplingParams(top_k=7))) == 7
    assert len(kept(row, SamplingParams(min_p=1.0))) == 1000
    assert len(kept(row, SamplingParams())) == 1000


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    row = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05], dtype=np.float32))
    assert kept(row, SamplingParams(top_p=0.49)) == {1}
    assert kept(row, SamplingParams(top_p=0.51)) == {1, 3}
    assert kept(row, SamplingParams(top_p=0.79)) == {1, 3}
    assert kept(row, SamplingParams(top_p=0.81)) == {0, 1, 3}


def test_min_p_is_relative_to_the_best() -> None:
    row = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05], dtype=np.float32))
    assert kept(row, SamplingParams(min_p=0.61)) == {1}
    assert kept(row, SamplingParams(min_p=0.59)) == {1, 3}
    assert kept(row, SamplingParams(min_p=0.19)) == {0, 1, 3}


def test_top_p_applies_to_the_tokens_of_top_k() -> None:
    row = np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.1], dtype=np.float32))
    assert kept(row, SamplingParams(top_p=0.55)) >= {0}
    assert len(kept(row, SamplingParams(top_p=0.55))) == 2
    assert kept(row, SamplingParams(top_k=2, top_p=0.55)) == {0}  # 0.4 of the remaining 0.6


def test_cuts_do_not_depend_on_the_temperature() -> None:
    row = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05], dtype=np.float32))
    for temperature in (0.3, 1.0, 2.0):
        assert kept(row, SamplingParams(temperature=temperature, top_p=0.51)) == {1, 3}


@pytest.mark.parametrize("where", [0, 1, 255, 256, 511, 698, 699])
@pytest.mark.parametrize("cut", [{}, {"top_k": 650}, {"top_p": 0.999}, {"min_p": 1e-6}], ids=str)
def test_an_impossible_token_is_never_drawn(where: int, cut: dict[str, float]) -> None:
    row = np.random.default_rng(where).normal(size=700).astype(np.float32)
    neighbours = [where, max(where - 1, 0), min(where + 1, 699)]
    row[neighbours] = -np.inf
    state = FixedDraw(params_of(cut))
    ends = np.cumsum(softmax(row.astype(np.float64)))
    edges = [float(ends[i]) + nudge for i in neighbours for nudge in (-1e-9, 0.0, 1e-9)]
    for uniform in (0.0, ALMOST_ONE, *edges):
        state.uniform = min(max(uniform, 0.0), ALMOST_ONE)
        assert pick(row, state) not in neighbours


def test_greedy_takes_the_best_token_with_any_other_parameters() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(6, 3000)).astype(np.float32)
    states = [
        SamplerState(SamplingParams(temperature=0.0, top_k=5, top_p=0.1, min_p=0.5, seed=seed), []) for seed in range(6)
    ]
    assert sample(rows, states, NO_EOG) == rows.argmax(axis=1).tolist()


def test_a_greedy_row_beside_a_sampled_one_stays_greedy() -> None:
    random = np.random.default_rng(2)
    rows = random.normal(size=(40, 500)).astype(np.float32)
    states = [SamplerState(SamplingParams(temperature=float(i % 2), seed=i), []) for i in range(40)]
    tokens = sample(rows, states, NO_EOG)
    assert tokens[::2] == rows[::2].argmax(axis=1).tolist()
    assert tokens[1::2] != rows[1::2].argmax(axis=1).tolist()


def test_greedy_with_penalties_takes_the_best_after_them() -> None:
    state = SamplerState(SamplingParams(temperature=0.0, presence_penalty=1.5), [])
    row = np.array([5.0, 4.0, 3.0], dtype=np.float32)
    tokens = []
    for _ in range(4):
        tokens.append(pick(row, state))
        state.accept(tokens[-1])
    assert tokens == [0, 1, 0, 0]


def test_sampling_does_not_change_the_rows() -> None:
    rows = np.random.default_rng(3).normal(size=(3, 500)).astype(np.float32)
    before = rows.copy()
    states = [
        SamplerState(SamplingParams(top_p=0.9, repeat_penalty=1.3, frequency_penalty=1.0, ignore_eos=True), [1, 2, 3]),
        SamplerState(SamplingParams(temperature=0.0, presence_penalty=1.0, ignore_eos=True), [1]),
        SamplerState(SamplingParams(temperature=0.5), []),
    ]
    for token in (5, 6, 5):
        for state in states:
            state.accept(token)
    sample(rows, states, np.array([0, 499]))
    assert (rows == before).all()


def test_a_row_gives_the_same_token_alone_and_in_a_batch() -> None:
    rows = np.random.default_rng(4).normal(size=(16, 2000)).astype(np.float32)
    mixes = [params_of(cut, 0.9) for cut in CUTS]

    def states() -> list[SamplerState]:
        return [SamplerState(dataclasses.replace(mix, seed=i), [1, 2]) for i, mix in enumerate(mixes)]

    together = sample(rows, states(), NO_EOG)
    assert together == [pick(row, state) for row, state in zip(rows, states(), strict=True)]


# Penalties


def adjusted(row: Sequence[float], params: SamplingParams, prompt: list[int], generated: Sequence[int]) -> list[float]:
    state = SamplerState(params, prompt)
    for token in generated:
        state.accept(token)
    values: list[float] = state.adjusted(np.array(row, dtype=np.float32), NO_EOG).tolist()
    return values


ROW = [3.0, -2.0, 1.0, 0.0, -1.0]


def test_frequency_and_presence_penalties_count_generated_tokens_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted(ROW, params, [4, 4, 3], [0, 1, 1, 1]) == [3.0 - 0.75, -2.0 - 1.75, 1.0, 0.0, -1.0]
    assert adjusted(ROW, SamplingParams(presence_penalty=-1.0), [], [2, 2]) == [3.0, -2.0, 2.0, 0.0, -1.0]
    assert adjusted(ROW, SamplingParams(frequency_penalty=-1.0), [], [2, 2]) == [3.0, -2.0, 3.0, 0.0, -1.0]


def test_repeat_penalty_lowers_prompt_and_generated_tokens_once() -> None:
    params = SamplingParams(repeat_penalty=2.0)
    assert adjusted(ROW, params, [1, 1], [0, 0, 3]) == [1.5, -4.0, 1.0, 0.0, -1.0]


def test_repeat_penalty_below_one_raises_tokens() -> None:
    assert adjusted(ROW, SamplingParams(repeat_penalty=0.5), [0, 1], []) == [6.0, -1.0, 1.0, 0.0, -1.0]


def test_repeat_penalty_comes_before_the_other_penalties() -> None:
    params = SamplingParams(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted(ROW, params, [], [0]) == [3.0 / 2 - 0.75, -2.0, 1.0, 0.0, -1.0]


def test_repeat_penalty_considers_its_window_only() -> None:
    params = SamplingParams(repeat_penalty=2.0)
    filler = [4] * (SamplingParams().repeat_last_n - 1)
    assert adjusted(ROW, params, [0, *filler], [])[0] == 1.5
    assert adjusted(ROW, params, [0, *filler], [4])[0] == 3.0
    assert adjusted(ROW, params, [0], filler)[0] == 1.5
    assert adjusted(ROW, params, [0], [*filler, 4])[0] == 3.0


def test_frequency_penalty_considers_all_generated_tokens() -> None:
    assert adjusted(ROW, SamplingParams(frequency_penalty=0.5), [], [0, *[4] * 500])[0] == 2.5


def test_without_penalties_a_row_is_not_copied() -> None:
    state = SamplerState(SamplingParams(), [1, 2])
    state.accept(0)
    row = np.array(ROW, dtype=np.float32)
    assert state.adjusted(row, np.array([1])) is row


# The end of a generation


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_ignore_eos_never_gives_an_end_token(temperature: float, cut: dict[str, float]) -> None:
    eog = [0, 300, 511]
    row = np.zeros(512, dtype=np.float32)
    row[eog] = 25.0
    state = FixedDraw(dataclasses.replace(params_of(cut, temperature), ignore_eos=True))
    for uniform in [0.0, *np.linspace(0.001, 0.999, 50), ALMOST_ONE]:
        state.uniform = float(uniform)
        assert pick(row, state, eog) not in eog


def test_an_end_token_is_sampled_without_ignore_eos() -> None:
    row = np.zeros(512, dtype=np.float32)
    row[300] = 25.0
    for temperature in (0.0, 1.0):
        assert pick(row, SamplerState(SamplingParams(temperature=temperature), []), [300]) == 300


# The draw


@given(seed=st.integers(-(2**63), 2**63 - 1), tokens=st.lists(st.integers(0, 100), max_size=5))
def test_the_draw_depends_only_on_seed_and_index(seed: int, tokens: list[int]) -> None:
    one = SamplerState(SamplingParams(seed=seed), [])
    other = SamplerState(SamplingParams(seed=seed, top_p=0.5, frequency_penalty=1.0, repeat_penalty=1.1), [7, 8, 9])
    for token in tokens:
        one.accept(3)
        other.accept(token)
    assert one.index == len(tokens)
    assert one.draw() == other.draw() == one.draw()
    assert 0.0 <= one.draw() < 1.0


def draws(seed: int, count: int) -> list[float]:
    state = SamplerState(SamplingParams(seed=seed), [])
    values = []
    for _ in range(count):
        values.append(state.draw())
        state.accept(1)
    return values


def test_draws_differ_by_seed_and_by_index() -> None:
    values = [value for seed in (0, 1, 2, -1, 2**62, 2**32) for value in draws(seed, 50)]
    assert len(set(values)) == 300


def test_draws_are_uniform_along_a_stream_and_across_seeds() -> None:
    """The largest gap between the share of draws below a value and that value (Kolmogorov and Smirnov)."""
    along = draws(5, 4000)
    across = [draws(seed, 1)[0] for seed in range(4000)]
    for values in (along, across):
        gap = np.abs(np.sort(values) - (np.arange(4000) + 0.5) / 4000).max()
        assert gap < 1.95 / math.sqrt(4000)  # one in a thousand; the seeds are fixed


@pytest.mark.parametrize("cut", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.2}], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_sampled_with_their_probabilities(cut: dict[str, float], temperature: float) -> None:
    row = np.random.default_rng(11).normal(size=12).astype(np.float32) * 1.5
    params = params_of(cut, temperature)
    reference = Reference(row, params)
    num_draws = 4000
    counts = np.zeros(12)
    state = SamplerState(dataclasses.replace(params, seed=42), [])
    for _ in range(num_draws):
        token = pick(row, state)
        counts[token] += 1
        state.accept(token)
    wanted = np.zeros(12)
    wanted[reference.tokens] = reference.shares * num_draws
    assert (counts[wanted == 0] == 0).all()
    possible = wanted > 0
    chi_square = float((((counts - wanted) ** 2)[possible] / wanted[possible]).sum())
    assert chi_square < 31.3  # one in a thousand at 11 degrees of freedom; the seed is fixed


# All parameters that the API accepts

EXTREMES = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 5e-324, 1e-300, 1e-40, 1e-20, 1e-8, 1e-3, 1.0, 2.0]),
    top_p=st.sampled_from([5e-324, 1e-12, 0.5, 1.0 - 1e-12, 1.0]),
    top_k=st.sampled_from([0, 1, 2**63]),
    min_p=st.sampled_from([0.0, 5e-324, 0.5, 1.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    repeat_penalty=st.sampled_from([0.01, 1.0, 10.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    ignore_eos=st.booleans(),
)


@given(params=EXTREMES, scale=st.sampled_from([0.0, 1.0, 100.0]), uniform=st.sampled_from([0.0, 0.5, ALMOST_ONE]))
def test_any_parameters_give_a_possible_token(params: SamplingParams, scale: float, uniform: float) -> None:
    row = (np.random.default_rng(5).normal(size=600) * scale).astype(np.float32)
    row[[7, 599]] = -np.inf
    state = FixedDraw(params, [1, 2, 3, 7])
    state.uniform = uniform
    for token in (1, 5, 5):
        state.accept(token)
    assert row[pick(row, state, [0, 598])] > -np.inf


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.99}, {"top_k": 10}], ids=str)
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-40, 1e-30, 1e-8])
def test_a_tiny_temperature_is_greedy(temperature: float, cut: dict[str, float]) -> None:
    row = np.random.default_rng(6).normal(size=600).astype(np.float32)
    state = FixedDraw(params_of(cut, temperature))
    for uniform in (0.0, 0.3, ALMOST_ONE):
        state.uniform = uniform
        assert pick(row, state) == row.argmax()


def dry_by_hand(tokens: list[int], breakers: set[int], allowed: int) -> dict[int, int]:
    """Returns the length of the longest repetition that each token would continue."""
    longest: dict[int, int] = {}
    for place in range(len(tokens) - 1):
        length = 0
        while (
            length <= place
            and tokens[place - length] == tokens[len(tokens) - 1 - length]
            and tokens[len(tokens) - 1 - length] not in breakers
        ):
            length += 1
        if length >= allowed:
            following = tokens[place + 1]
            longest[following] = max(longest.get(following, 0), length)
    return longest


@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    breakers=st.sets(st.integers(0, 4), max_size=2),
    allowed=st.integers(1, 4),
    split=st.integers(0, 60),
)
def test_dry_penalises_longer_repetitions_more(tokens: list[int], breakers: set[int], allowed: int, split: int) -> None:
    params = SamplingParams(
        dry_multiplier=0.5, dry_base=1.5, dry_allowed_length=allowed, dry_breakers=sorted(breakers), top_k=0
    )
    state = SamplerState(params, tokens[:split])
    for token in tokens[split:]:
        state.accept(token)
    row = np.zeros(10, np.float32)
    expected = np.zeros(10)
    for token, length in dry_by_hand(tokens, breakers, allowed).items():
        expected[token] = -0.5 * 1.5 ** (length - allowed)
    assert state.adjusted(row, NO_EOG) == pytest.approx(expected, rel=1e-4)
    assert not row.any(), "the row of logits is not changed"


def test_dry_on_a_long_monotonous_text_is_fast_and_does_not_overflow() -> None:
    state = SamplerState(SamplingParams(dry_multiplier=5.0), [7] * 8192)
    row = state.adjusted(np.zeros(10, np.float32), NO_EOG)
    assert np.isfinite(row).all()
    assert row[7] < -1e30


# Logit bias, grammars, min_tokens


def packed(allowed: Sequence[int], size: int) -> NDArray[np.int32]:
    bits = np.zeros((size + 31) // 32 * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def test_a_logit_bias_changes_the_best_token() -> None:
    row = np.array([0.0, 5.0, 1.0], np.float32)
    assert pick(row, SamplerState(SamplingParams(temperature=0.0, logit_bias=[(1, -100.0)]), [])) == 2
    assert pick(row, SamplerState(SamplingParams(temperature=0.0, logit_bias=[(0, 3.0), (0, 3.0)]), [])) == 0


@given(
    row=ROWS,
    allowed=st.sets(st.integers(0, 199), min_size=1, max_size=20),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 2.0]),
        top_p=st.sampled_from([0.3, 1.0]),
        top_k=st.sampled_from([0, 3]),
        min_p=st.sampled_from([0.0, 0.5]),
        typical_p=st.sampled_from([0.5, 1.0]),
        top_n_sigma=st.sampled_from([0.0, 1.0]),
        xtc_probability=st.sampled_from([0.0, 1.0]),
        mirostat=st.sampled_from([0, 1, 2]),
        ignore_eos=st.booleans(),
        logit_bias=st.sampled_from([[], [(199, 100.0)], [(5, -100.0)]]),
        seed=st.integers(0, 1000),
    ),
)
def test_a_token_that_the_grammar_forbids_is_never_sampled(row: Row, allowed: set[int], params: SamplingParams) -> None:
    before = row.copy()
    eog = np.array([3, 150], np.intp)
    for mask in (packed(sorted(allowed), len(row)), packed([150], len(row))):
        [token] = sample(row[np.newaxis], [SamplerState(params, [])], eog, [mask])
        assert isinstance(token, int), token
        assert np.unpackbits(mask.view(np.uint8), bitorder="little")[token]
        if params.ignore_eos and not allowed <= {3, 150} and mask[0] != packed([150], len(row))[0]:
            assert token not in eog
    assert (row == before).all()


def test_rows_with_and_without_a_grammar_are_sampled_together() -> None:
    row = np.array([[0.0, 5.0, 1.0]] * 2, np.float32)
    states = [SamplerState(SamplingParams(temperature=0.0), []) for _ in range(2)]
    assert sample(row, states, NO_EOG, [packed([0, 2], 3), None]) == [2, 1]


def test_no_end_token_is_sampled_before_min_tokens() -> None:
    row = np.array([0.0, 5.0, 1.0], np.float32)
    state = SamplerState(SamplingParams(temperature=0.0, min_tokens=1), [])
    assert pick(row, state, eog=[1]) == 2
    state.accept(2)
    assert pick(row, state, eog=[1]) == 1


# Mirostat


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_the_surprise_near_its_target(version: int) -> None:
    random = np.random.default_rng(0)
    state = SamplerState(SamplingParams(mirostat=version, mirostat_tau=3.0, mirostat_eta=0.1, seed=5), [])
    surprises = []
    for _ in range(400):
        row = random.normal(0, 2.5, 2000).astype(np.float32)
        token = pick(row, state)
        state.accept(token)
        surprises.append(-math.log2(softmax(row.astype(np.float64))[token]))
    assert 1.5 < np.mean(surprises[100:]) < 5.0  # about 6.5 without Mirostat


# Rows from which nothing can be sampled

SAMPLERS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, presence_penalty=0.5),
    SamplingParams(),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.1),
    SamplingParams(typical_p=0.5),
    SamplingParams(top_n_sigma=1.0),
    SamplingParams(xtc_probability=1.0),
    SamplingParams(mirostat=1),
    SamplingParams(mirostat=2),
    SamplingParams(dry_multiplier=0.8),
    SamplingParams(logit_bias=[(3, -100.0)]),
    SamplingParams(ignore_eos=True),
]
ANY_SAMPLER = pytest.mark.parametrize("params", SAMPLERS, ids=str)


def error_of(row: Row, params: SamplingParams, mask: Mask | None = None) -> RequestError:
    """Returns the error of a row between two others, which must give the same tokens as without it."""
    random = np.random.default_rng(6)
    rows = random.normal(size=(3, len(row))).astype(np.float32)

    def states() -> list[SamplerState]:
        return [SamplerState(dataclasses.replace(params, seed=seed), [1, 2]) for seed in range(3)]

    eog = np.array([0], np.intp)
    alone = [sample(rows[number : number + 1], [states()[number]], eog)[0] for number in range(3)]
    rows[1] = row
    first, error, last = sample(rows, states(), eog, [None, mask, None] if mask is not None else [])
    assert (first, last) == (alone[0], alone[2])
    assert isinstance(error, RequestError)
    return error


@ANY_SAMPLER
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_row_with_an_invalid_logit_fails_alone(params: SamplingParams, value: float, name: str) -> None:
    for token in (0, 1, 77, 254, 255):
        row = np.random.default_rng(token).normal(size=256).astype(np.float32)
        row[token] = value
        for mask in (None, packed([5, 6], 256)):
            error = error_of(row, params, mask)
            assert isinstance(error, InvalidLogitsError)
            assert str(error) == f"the model computed no valid logits ({name}) for this request"


@ANY_SAMPLER
def test_a_row_that_excludes_every_token_fails_alone(params: SamplingParams) -> None:
    error = error_of(np.full(256, -np.inf, np.float32), params)
    assert str(error) == "the model computed no valid logits (-infinity for every token) for this request"


@ANY_SAMPLER
def test_a_model_may_exclude_tokens(params: SamplingParams) -> None:
    row = np.full(256, -np.inf, np.float32)
    row[40:140] = np.random.default_rng(7).normal(size=100)
    for seed in range(20):
        assert 40 <= pick(row, SamplerState(dataclasses.replace(params, seed=seed), [1]), eog=[0]) < 140


@ANY_SAMPLER
def test_a_single_token_that_is_left_is_sampled(params: SamplingParams) -> None:
    row = np.full(256, -np.inf, np.float32)
    row[40] = -3.0
    assert pick(row, SamplerState(params, [1])) == 40


@ANY_SAMPLER
def test_a_grammar_without_a_possible_token_fails_alone(params: SamplingParams) -> None:
    row = np.random.default_rng(8).normal(size=256).astype(np.float32)
    error = error_of(row, params, packed([], 256))
    assert isinstance(error, GrammarError)
    assert str(error) == "the grammar allows no token to continue the answer"
    row[5] = -np.inf
    error = error_of(row, params, packed([5], 256))
    assert isinstance(error, GrammarError)
    assert str(error) == "logit_bias or the model excludes every token that the grammar allows"


def test_a_bias_of_minus_100_on_all_allowed_tokens_still_gives_one() -> None:
    row = np.random.default_rng(9).normal(size=256).astype(np.float32)
    state = SamplerState(SamplingParams(logit_bias=[(5, -100.0), (6, -100.0)]), [])
    [token] = sample(row[np.newaxis], [state], NO_EOG, [packed([5, 6], 256)])
    assert token in (5, 6)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (SamplingParams(logit_bias=[(0, -np.inf), (1, -np.inf)]), "excludes every token"),
        (SamplingParams(logit_bias=[(1, -np.inf)], min_tokens=1), "excludes every token"),
        (SamplingParams(logit_bias=[(1, np.inf)]), "too large"),
        (SamplingParams(logit_bias=[(1, np.nan)]), "too large"),
    ],
    ids=str,
)
def test_biases_that_leave_nothing_to_sample_fail_alone(params: SamplingParams, reason: str) -> None:
    for temperature in (0.0, 1.0):
        state = SamplerState(dataclasses.replace(params, temperature=temperature), [])
        [error] = sample(np.ones((1, 2), np.float32), [state], np.array([0], np.intp))
        assert isinstance(error, RequestError)
        assert not isinstance(error, InvalidLogitsError), "the model is not to blame"
        assert reason in str(error)


@pytest.mark.parametrize("error", [KeyError(7), IndexError("a bug"), OverflowError()], ids=repr)
def test_an_unexpected_exception_fails_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SamplerState):
        def draw(self, stream: int = 0) -> float:
            raise error

    rows = np.random.default_rng(10).normal(size=(3, 256)).astype(np.float32)
    states = [
        SamplerState(SamplingParams(seed=1), []),
        Broken(SamplingParams(), []),
        SamplerState(SamplingParams(), []),
    ]
    first, failure, last = sample(rows, states, NO_EOG)
    assert isinstance(first, int)
    assert isinstance(last, int)
    assert isinstance(failure, RequestError)
    text = str(failure)
    assert text.startswith(f"the model failed on this request: {type(error).__name__}")
    assert "\n" not in text
    [record] = caplog.records
    assert record.exc_info


@pytest.mark.parametrize("version", [1, 2])
def test_sampling_again_after_a_failed_step_gives_the_same_token(version: int) -> None:
    """Only an accepted token changes Mirostat's target."""
    row = np.random.default_rng(11).normal(0, 2.5, 2000).astype(np.float32)
    once = SamplerState(SamplingParams(mirostat=version, mirostat_tau=3.0), [])
    again = SamplerState(SamplingParams(mirostat=version, mirostat_tau=3.0), [])
    for _ in range(30):
        pick(row, again)
        token = pick(row, again)
        assert pick(row, once) == token
        once.accept(token)
        again.accept(token)
