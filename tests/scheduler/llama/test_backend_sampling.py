"""The compute graph finds the best tokens, for the requests that need no other logits."""

import dataclasses
from collections.abc import Iterator
from queue import Queue

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.grammar import Compiled, Grammar
from scheduler.llama.context import Context
from scheduler.llama.load import Parts, load
from scheduler.llama.model import Model
from scheduler.messages import Output, SamplingParams, Submit
from scheduler.sampling import SamplerState, sample, sample_best
from tests.closeness import Reference

SECONDS = 120.0
"""Timeout for the compilation of a grammar, long enough for a busy machine."""
TOP_K = 32
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def model(exact_model_path: str) -> Iterator[Model]:
    model = Model(exact_model_path, 0)
    yield model
    model.close()


@pytest.fixture
def context(model: Model, exact_model_path: str) -> Iterator[Context]:
    config = EngineConfig(exact_model_path)
    context = Context(model, config, kv_tokens=1024, num_ids=256, num_outputs=256, batch_tokens=256, threads=1)
    yield context
    context.close()


def fill(context: Context, *prompts: list[int], ids: list[int]) -> list[int]:
    """Decode prompts in one batch. Returns the index of each prompt's last token."""
    ends, end = [], 0
    context.outputs[:] = 0
    for prompt, sequence_id in zip(prompts, ids, strict=True):
        start, end = end, end + len(prompt)
        context.remove(sequence_id, 0, -1)
        context.tokens[start:end] = prompt
        context.positions[start:end] = np.arange(len(prompt))
        context.ids[start:end] = sequence_id
        context.outputs[end - 1] = 1
        ends.append(end - 1)
    context.decode(end)
    return ends


def best_of(row: NDArray[np.float32], count: int) -> set[int]:
    return set(np.argsort(-row, kind="stable")[:count].tolist())


def test_the_graph_finds_the_best_tokens(context: Context) -> None:
    """A second output needs its logits, so all rows are copied and can be compared with the graph's result."""
    assert context.attach_top_k(3, TOP_K)
    prompts = [[1000, 2000, 3000], [4000, 5000, 6000, 7000]]
    first, _ = fill(context, *prompts, ids=[3, 5])
    row = context.logits(2)[0]
    tokens, logits = context.best(first)
    assert set(tokens.tolist()) == best_of(row, TOP_K)
    assert (row[tokens] == logits).all()


def test_top_k_can_be_detached_and_attached_again(context: Context) -> None:
    """The graphs with and without top-k may round differently."""
    prompt = [1000, 2000, 3000]
    scale = Reference(context).scale(prompt, 2, wrong=1)
    for _ in range(3):
        assert context.attach_top_k(0, TOP_K)
        [end] = fill(context, prompt, ids=[0])
        tokens, logits = context.best(end)
        assert context.attach_top_k(0, 0)
        fill(context, prompt, ids=[0])
        [row] = context.logits(1)
        scale.assert_same(logits, row[tokens])
        scale.assert_same(np.sort(row[tokens]), np.sort(row)[-TOP_K:])


def test_top_k_can_be_attached_to_every_sequence_id(context: Context) -> None:
    for sequence_id in range(256):
        assert context.attach_top_k(sequence_id, TOP_K)
    ends = fill(context, *[[1000 + i, 2000] for i in range(100)], ids=list(range(100)))
    assert all(len(context.best(end)[0]) == TOP_K for end in ends)


rows = st.integers(0, 10_000).map(
    lambda seed: np.random.default_rng(seed).normal(0, 1 + seed % 4, 300).astype(np.float32)
)


@given(
    row=rows,
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.integers(1, TOP_K),
        top_p=st.sampled_from([0.3, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
        typical_p=st.sampled_from([0.5, 1.0]),
        xtc_probability=st.sampled_from([0.0, 1.0]),
        ignore_eos=st.booleans(),
        seed=st.integers(0, 1000),
    ),
    shuffle=st.integers(0, 100),
)
def test_sampling_from_the_best_tokens_equals_sampling_from_the_row(
    row: NDArray[np.float32], params: SamplingParams, shuffle: int
) -> None:
    eog = np.array([3, 150], np.intp)
    state = SamplerState(params, [])
    assert state.best_suffice(TOP_K)
    tokens = np.random.default_rng(shuffle).permutation(np.argsort(-row)[: TOP_K + len(eog)])
    assert [sample_best(tokens, row[tokens], state, eog)] == sample(row[np.newaxis], [state], eog)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(top_k=TOP_K + 1),
        SamplingParams(top_k=5, top_n_sigma=1.0),
        SamplingParams(top_k=5, frequency_penalty=0.1),
        SamplingParams(temperature=0.0, logit_bias=[(1, 1.0)]),
        SamplingParams(top_k=5, mirostat=2),
    ],
    ids=str,
)
def test_the_best_tokens_do_not_suffice_for_other_parameters(params: SamplingParams) -> None:
    assert not SamplerState(params, []).best_suffice(TOP_K)


def test_a_limit_applies_only_to_requests_that_do_not_need_all_logits() -> None:
    plain = SamplerState(SamplingParams(top_p=0.9), [])
    plain.limit(TOP_K)
    assert plain.params == SamplingParams(top_p=0.9, top_k=TOP_K)
    penalized = SamplerState(SamplingParams(presence_penalty=1.0), [])
    penalized.limit(TOP_K)
    assert penalized.params == SamplingParams(presence_penalty=1.0)


# On a whole engine


@pytest.fixture
def parts(model_path: str) -> Parts:
    return load(EngineConfig(model_path, ctx_len=512, kv_tokens=2048, max_seqs=4, threads=1, backend_top_k=TOP_K))


def serve(parts: Parts, submits: list[tuple[Submit, Grammar | None]]) -> dict[int, Output]:
    outputs = {submit.request_id: Output(submit.request_id) for submit, _ in submits}
    for submit, grammar in submits:
        assert parts.scheduler.submit(submit, grammar) is None
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        for output in parts.scheduler.commit(plan, parts.runner.run(plan)):
            outputs[output.request_id].merge(output)
    parts.scheduler.cache.check_integrity()
    return outputs


def test_all_kinds_of_requests_are_served_together(parts: Parts, tokenizer: Tokenizer) -> None:
    """Twenty requests use four sequence ids. So each id serves requests that need logits and requests that do not."""
    compiled: Queue[Compiled] = Queue()
    grammar = 'start: "yes" | "no"'
    parts.compiler.compile(Submit(0, [1], 1, grammar=grammar), compiled.put)
    kinds = [
        Submit(0, [], 12, GREEDY),
        Submit(0, [], 12, SamplingParams(temperature=0.8, top_p=0.9, seed=1, ignore_eos=True)),
        Submit(0, [], 12, GREEDY, logprobs=2),
        Submit(0, [], 12, dataclasses.replace(GREEDY, repeat_penalty=1.3)),
        Submit(0, [], 12, GREEDY, logprobs=0, score_prompt=True),
    ]
    submits: list[tuple[Submit, Grammar | None]] = []
    for number in range(20):
        prompt = tokenizer.encode(f"{number} times the clock struck, and then", parse_special=False)
        kind = kinds[number % len(kinds)]
        submits.append((dataclasses.replace(kind, request_id=number, tokens=prompt), None))
    done = compiled.get(timeout=SECONDS)
    assert isinstance(done.grammar, Grammar)
    prompt = tokenizer.encode("Is water wet?", parse_special=False)
    submits.append((Submit(99, prompt, 12, SamplingParams(), grammar=grammar), done.grammar))
    outputs = serve(parts, submits)
    for number in range(20):
        assert len(outputs[number].tokens) == 12
        assert len(outputs[number].logprobs) == (12 if number % 5 in (2, 4) else 0)
        assert len(outputs[number].prompt_logprobs) == (len(submits[number][0].tokens) - 1 if number % 5 == 4 else 0)
    assert tokenizer.text(outputs[99].tokens) in ("yes", "no")


def test_greedy_answers_are_the_same_except_for_rounding(
    model: Model, exact_model_path: str, context: Context, tokenizer: Tokenizer
) -> None:
    """Each token is the best one of a fresh computation, or nearly as good: nearer to it than with a wrong token."""
    prompt = tokenizer.encode("The capital of France is", parse_special=False)
    reference, config = Reference(context), EngineConfig(exact_model_path, ctx_len=512, kv_tokens=2048, max_seqs=4)
    for top_k in (0, TOP_K):
        parts = load(dataclasses.replace(config, threads=1, backend_top_k=top_k))
        tokens = prompt + serve(parts, [(Submit(1, prompt, 8, GREEDY), None)])[1].tokens
        assert len(tokens) == len(prompt) + 8
        rows = reference.logits(tokens[:-1], len(prompt) - 1)
        rows[:, sorted(model.eog_tokens)] = -np.inf
        scale = reference.scale(tokens[:-1], len(prompt) - 1, wrong=len(prompt) - 2)
        sampled = np.take_along_axis(rows, np.array(tokens[len(prompt) :])[:, np.newaxis], axis=1)
        scale.assert_same(sampled, rows.max(axis=1, keepdims=True))
