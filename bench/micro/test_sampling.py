"""What choosing one token costs, for rows as a model makes them: a few likely tokens and a long tail."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from scheduler.messages import SamplingParams
from scheduler.sampling import SamplerState, sample

EOG = np.array([2], dtype=np.intp)
PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "openai_defaults": SamplingParams(),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95),
    "top_k": SamplingParams(temperature=0.8, top_k=40, top_p=0.95),
    "penalties": SamplingParams(temperature=0.8, frequency_penalty=0.5, repeat_penalty=1.1),
}


@pytest.mark.parametrize("vocab_size", [49_152, 128_256])
@pytest.mark.parametrize("name", PARAMS)
def test_sample_one_row(benchmark: BenchmarkFixture, name: str, vocab_size: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0.0, 3.0, (1, vocab_size)).astype(np.float32)
    logits[0, random.integers(0, vocab_size, 20)] += 12.0
    state = SamplerState(PARAMS[name], list(range(100)))
    for token in range(200, 240):
        state.accept(token)
    tokens = benchmark.pedantic(sample, args=(logits, [state], EOG), rounds=200, warmup_rounds=5)
    assert len(tokens) == 1
