"""Sampling makes the same cuts as llama.cpp's own samplers."""

from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cuts import candidates
from scheduler.messages import SamplingParams
from scheduler.sampling import SamplerState
from tests.scheduler.rows import NO_EOG, ROWS, Row, softmax


def native(row: Row, *samplers: Any) -> dict[int, float]:
    """Returns the tokens that a chain of llama.cpp's samplers keeps of a row, with their probabilities."""
    entries = (lib.llama_token_data * len(row))(*[lib.llama_token_data(i, float(v), 0.0) for i, v in enumerate(row)])
    array = lib.llama_token_data_array(entries, len(row), -1, False)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)
    lib.llama_sampler_apply(chain, array)
    left: dict[int, float] = {int(array.data[i].id): float(array.data[i].logit) for i in range(array.size)}
    lib.llama_sampler_free(chain)
    shares = softmax(np.array(list(left.values()), np.float64))
    return dict(zip(left, shares.tolist(), strict=True))


def ours(
    row: Row, params: SamplingParams, prompt: Sequence[int] = (), generated: Sequence[int] = ()
) -> dict[int, float]:
    state = SamplerState(params, list(prompt))
    for token in generated:
        state.accept(token)
    logits = state.adjusted(row, NO_EOG)
    tokens = candidates(logits, logits.max(), params, excludes_top=state.excludes_top)
    if tokens is None:
        tokens = np.flatnonzero(np.isfinite(logits))
    shares = softmax(logits[tokens].astype(np.float64))
    return dict(zip(tokens.tolist(), shares.tolist(), strict=True))


def assert_same(one: dict[int, float], other: dict[int, float]) -> None:
    """Check that both are the same, except for tokens at a cut, where single precision decides."""
    for token in one.keys() ^ other.keys():
        assert max(one.get(token, 0.0), other.get(token, 0.0)) < 0.02 or len(one.keys() ^ other.keys()) <= 1
    shared = one.keys() & other.keys()
    assert len(shared) >= min(len(one), len(other)) - 1
    for token in shared:
        assert one[token] == pytest.approx(other[token], rel=0.05, abs=1e-3)


@given(row=ROWS, top_k=st.integers(1, 300))
def test_top_k_is_llama_cpps(row: Row, top_k: int) -> None:
    assert_same(ours(row, SamplingParams(top_k=top_k)), native(row, lib.llama_sampler_init_top_k(top_k)))


@given(row=ROWS, share=st.floats(0.05, 0.99))
def test_top_p_is_llama_cpps(row: Row, share: float) -> None:
    assert_same(ours(row, SamplingParams(top_p=share)), native(row, lib.llama_sampler_init_top_p(share, 1)))


@given(row=ROWS, share=st.floats(0.05, 0.99))
def test_typical_p_is_llama_cpps(row: Row, share: float) -> None:
    assert_same(ours(row, SamplingParams(typical_p=share)), native(row, lib.llama_sampler_init_typical(share, 1)))


@given(row=ROWS, share=st.floats(0.001, 0.9))
def test_min_p_is_llama_cpps(row: Row, share: float) -> None:
    assert_same(ours(row, SamplingParams(min_p=share)), native(row, lib.llama_sampler_init_min_p(share, 1)))


@given(row=ROWS, sigmas=st.floats(0.5, 4))
def test_top_n_sigma_is_llama_cpps(row: Row, sigmas: float) -> None:
    left = native(row, lib.llama_sampler_init_top_n_sigma(sigmas))
    left = {
        token: share for token, share in left.items() if share > 0
    }  # this sampler sets the other probabilities to 0
    assert_same(ours(row, SamplingParams(top_n_sigma=sigmas)), left)


@given(row=ROWS, threshold=st.floats(0.01, 0.6))
def test_xtc_is_llama_cpps(row: Row, threshold: float) -> None:
    mine = ours(row, SamplingParams(xtc_probability=1.0, xtc_threshold=threshold))
    assert_same(mine, native(row, lib.llama_sampler_init_xtc(1.0, threshold, 1, 7)))


@given(row=ROWS, tokens=st.lists(st.integers(0, 30), max_size=80), last_n=st.sampled_from([0, 5, 64]))
def test_repeat_penalty_is_llama_cpps(row: Row, tokens: list[int], last_n: int) -> None:
    penalties = lib.llama_sampler_init_penalties(len(row), last_n, 1.3, 0.0, 0.0)
    for token in tokens:
        lib.llama_sampler_accept(penalties, token)
    params = SamplingParams(repeat_penalty=1.3, repeat_last_n=last_n)
    half = len(tokens) // 2
    assert_same(ours(row, params, tokens[:half], tokens[half:]), native(row, penalties))
