"""The cost of sampling one token with each sampler, compared with llama.cpp's samplers and with a real step.

Flat rows leave thousands of candidates after the cuts. Peaked rows are like those of a confident model. The native
chains get a copy of a row that is already in their format. `llama_sampler_sample` would convert it for each token.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from api.models.files import resolve
from scheduler.config import EngineConfig
from scheduler.llama.load import load
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import Plan
from scheduler.sampling import SamplerState, sample

Row = NDArray[np.float32]

EOG = np.array([2], dtype=np.intp)
LAST_N = 64
ROUNDS = 100
NUM_SEQUENCES = 16

PROMPT = list(range(100))
OUTPUT = range(200, 240)
PARAMS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top_k": SamplingParams(temperature=0.8, top_k=40),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95),
    "min_p": SamplingParams(temperature=0.8, min_p=0.05),
    "typical_p": SamplingParams(temperature=0.8, typical_p=0.9),
    "top_n_sigma": SamplingParams(temperature=0.8, top_n_sigma=1.0),
    "xtc": SamplingParams(temperature=0.8, min_p=0.001, xtc_probability=1.0, xtc_threshold=0.1),
    "llama_server_defaults": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
    "logit_bias": SamplingParams(temperature=0.8, top_k=40, logit_bias=[(token, 1.0) for token in range(50)]),
    "penalties": SamplingParams(temperature=0.8, top_k=40, repeat_penalty=1.1, repeat_last_n=LAST_N),
    "dry": SamplingParams(temperature=0.8, top_k=40, dry_multiplier=0.8),
    "mirostat_1": SamplingParams(temperature=0.8, mirostat=1),
    "mirostat_2": SamplingParams(temperature=0.8, mirostat=2),
}


def native_samplers(name: str, vocab_size: int, vocab: Any) -> list[Any]:
    """The same samplers of llama.cpp, in its order."""
    match name:
        case "greedy":
            return [lib.llama_sampler_init_greedy()]
        case "mirostat_1":
            mirostat = lib.llama_sampler_init_mirostat(vocab_size, 1, 5.0, 0.1, 100)
            return [lib.llama_sampler_init_temp(0.8), mirostat]
        case "mirostat_2":
            return [lib.llama_sampler_init_temp(0.8), lib.llama_sampler_init_mirostat_v2(1, 5.0, 0.1)]
        case "temperature":
            cuts = []
        case "top_k":
            cuts = [lib.llama_sampler_init_top_k(40)]
        case "top_p":
            cuts = [lib.llama_sampler_init_top_p(0.95, 1)]
        case "min_p":
            cuts = [lib.llama_sampler_init_min_p(0.05, 1)]
        case "typical_p":
            cuts = [lib.llama_sampler_init_typical(0.9, 1)]
        case "top_n_sigma":
            cuts = [lib.llama_sampler_init_top_n_sigma(1.0)]
        case "xtc":
            cuts = [lib.llama_sampler_init_min_p(0.001, 1), lib.llama_sampler_init_xtc(1.0, 0.1, 1, 1)]
        case "llama_server_defaults":
            cuts = [lib.llama_sampler_init_top_k(40), lib.llama_sampler_init_top_p(0.95, 1)]
            cuts.append(lib.llama_sampler_init_min_p(0.05, 1))
        case "logit_bias":
            bias = (lib.llama_logit_bias * 50)(*[lib.llama_logit_bias(token, 1.0) for token in range(50)])
            cuts = [lib.llama_sampler_init_logit_bias(vocab_size, 50, bias), lib.llama_sampler_init_top_k(40)]
        case "penalties":
            cuts = [lib.llama_sampler_init_penalties(vocab_size, LAST_N, 1.1, 0.0, 0.0)]
            cuts.append(lib.llama_sampler_init_top_k(40))
        case "dry":
            cuts = [lib.llama_sampler_init_dry(vocab, 0.8, 1.75, 2, -1, None, 0), lib.llama_sampler_init_top_k(40)]
        case _:
            raise AssertionError(name)
    return [*cuts, lib.llama_sampler_init_temp(0.8), lib.llama_sampler_init_dist(1)]


def row_of(kind: str, vocab_size: int) -> Row:
    random = np.random.default_rng(0)
    row = random.normal(0.0, 0.5 if kind == "flat" else 3.0, vocab_size).astype(np.float32)
    if kind == "peaked":
        row[random.integers(0, vocab_size, 20)] += 12.0
    return row


SAMPLERS = pytest.mark.parametrize("name", PARAMS)
SIZES = pytest.mark.parametrize("vocab_size", [49_152, 128_256, 262_144])
KINDS = pytest.mark.parametrize("kind", ["flat", "peaked"])


@KINDS
@SIZES
@SAMPLERS
def test_sample_one_row(benchmark: BenchmarkFixture, name: str, vocab_size: int, kind: str) -> None:
    rows = row_of(kind, vocab_size)[np.newaxis]
    state = SamplerState(PARAMS[name], PROMPT)
    for token in OUTPUT:
        state.accept(token)
    tokens = benchmark.pedantic(sample, args=(rows, [state], EOG), rounds=ROUNDS, warmup_rounds=5)
    assert len(tokens) == 1


@pytest.fixture(scope="module")
def vocab() -> Iterator[Any]:
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(resolve("smollm2:135m")).encode(), params)
    yield lib.llama_model_get_vocab(model)
    lib.llama_model_free(model)


@KINDS
@SIZES
@SAMPLERS
def test_native_chain(benchmark: BenchmarkFixture, name: str, vocab_size: int, kind: str, vocab: Any) -> None:
    entries = lib.llama_token_data * vocab_size
    row = row_of(kind, vocab_size)
    laid_out = entries(*[lib.llama_token_data(token, float(logit), 0.0) for token, logit in enumerate(row)])
    work = entries()
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in native_samplers(name, vocab_size, vocab):
        lib.llama_sampler_chain_add(chain, sampler)
    for token in (*PROMPT, *OUTPUT):
        lib.llama_sampler_accept(chain, token)

    def sample_natively() -> int:
        ctypes.memmove(work, laid_out, ctypes.sizeof(entries))
        array = lib.llama_token_data_array(work, vocab_size, -1, False)
        lib.llama_sampler_apply(chain, array)
        return int(array.data[array.selected].id)

    token = benchmark.pedantic(sample_natively, rounds=ROUNDS, warmup_rounds=5)
    lib.llama_sampler_free(chain)
    assert 0 <= token < vocab_size


# Compared with a real step


class Engine:
    """A loaded engine that generates 16 answers, each to its own prompt."""

    def __init__(self) -> None:
        parts = load(EngineConfig(str(resolve("smollm2:135m"))))
        self._scheduler, self._runner = parts.scheduler, parts.runner
        greedy = SamplingParams(temperature=0.0, ignore_eos=True)
        for request in range(NUM_SEQUENCES):
            assert self._scheduler.submit(Submit(request, [1000 + request, *range(2000, 2129)], 400, greedy)) is None
        while self.step().num_decode < NUM_SEQUENCES:
            pass

    def step(self) -> Plan:
        plan = self._scheduler.plan()
        self._scheduler.commit(plan, self._runner.run(plan))
        return plan

    def logits(self) -> NDArray[np.float32]:
        """Rows of the last step."""
        return self._runner.logits(NUM_SEQUENCES).copy()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def test_step_of_16(benchmark: BenchmarkFixture, engine: Engine) -> None:
    """Greedy, so that sampling costs almost nothing."""
    plan = benchmark.pedantic(engine.step, rounds=50, warmup_rounds=3)
    assert plan.num_decode == plan.num_tokens == NUM_SEQUENCES


def test_sample_step_of_16(benchmark: BenchmarkFixture, engine: Engine) -> None:
    """The same step's logits at temperature 0.8 and top_p 0.95."""
    engine.step()
    states = [SamplerState(SamplingParams(temperature=0.8, top_p=0.95, seed=i), []) for i in range(NUM_SEQUENCES)]
    tokens = benchmark.pedantic(sample, args=(engine.logits(), states, EOG), rounds=50, warmup_rounds=3)
    assert len(tokens) == NUM_SEQUENCES
