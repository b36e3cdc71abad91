"""The runner on a fake context: a failure of one request is reported for this request only."""

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from kvcache.cache import KVCache
from kvcache.pool import PoolLayout
from scheduler.llama.context import Context
from scheduler.llama.runner import LlamaRunner
from scheduler.messages import Output, SamplingParams, Submit, ThoughtLimit
from scheduler.pacing import Pacer
from scheduler.plan import StepError, attempt_step
from scheduler.scheduler import Scheduler
from tests.kvcache.fakes import FakeMemory

VOCABULARY, MAX_TOKENS, BACKEND_TOP_K = 256, 6, 8
SAMPLERS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=5),
    SamplingParams(seed=3, top_p=0.9, presence_penalty=0.5),
    SamplingParams(seed=4, mirostat=2),
]


class FakeContext:
    """Each row of logits depends on its token and position only, so not on the step."""

    def __init__(self, memory: FakeMemory) -> None:
        self.tokens, self.positions, self.ids = (np.zeros(512, np.int32) for _ in range(3))
        self.outputs = np.zeros(512, np.int8)
        self.attached: set[int] = set()
        self.spoil: Callable[[int, NDArray[np.float32]], None] = lambda token, row: None
        """Changes the row of a token."""
        self._memory = memory
        self._num_tokens = 0

    def decode(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        for token, position, number in zip(self.tokens, self.positions, self.ids[:num_tokens], strict=False):
            self._memory.compute(int(number), int(position), [int(token)])

    def _row(self, index: int) -> NDArray[np.float32]:
        token = int(self.tokens[index])
        row = np.random.default_rng([token, int(self.positions[index])]).normal(size=VOCABULARY).astype(np.float32)
        self.spoil(token, row)
        return row

    def logits(self, num_rows: int) -> NDArray[np.float32]:
        rows = [self._row(int(index)) for index in np.flatnonzero(self.outputs[: self._num_tokens])]
        assert len(rows) == num_rows
        return np.array(rows, np.float32).reshape(num_rows, VOCABULARY)

    def attach_top_k(self, sequence_id: int, top_k: int) -> bool:
        (self.attached.add if top_k else self.attached.discard)(sequence_id)
        return True

    def best(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        row = self._row(index)
        tokens = np.argsort(-row)[: BACKEND_TOP_K + 1]
        return tokens, row[tokens]


class Engine:
    """A scheduler and a runner on the fake context."""

    def __init__(self, backend_top_k: int = 0) -> None:
        memory = FakeMemory(64)
        self.context = FakeContext(memory)
        self.cache = KVCache(memory, PoolLayout(64, 32))
        self.runner = LlamaRunner(
            cast(Context, self.context),
            frozenset({0}),
            max_seqs=16,
            vocab_size=VOCABULARY,
            backend_top_k=backend_top_k,
        )
        self.scheduler = Scheduler(
            self.cache,
            Pacer(0.001),
            max_seqs=16,
            token_budget=256,
            ctx_len=512,
            piece=lambda token: f"<{token}>".encode(),
            max_top_k=backend_top_k,
        )
        self.outputs: dict[int, Output] = {}

    def submit(
        self,
        number: int,
        params: SamplingParams,
        *,
        logprobs: int | None = None,
        scores: bool = False,
        thoughts: ThoughtLimit | None = None,
    ) -> None:
        prompt = [200 + number, *range(10 * number, 10 * number + 8)]
        submit = Submit(number, prompt, MAX_TOKENS, params, logprobs=logprobs, score_prompt=scores, thoughts=thoughts)
        assert self.scheduler.submit(submit) is None
        self.outputs[number] = Output(number)

    def run(self) -> dict[int, Output]:
        while self.scheduler.has_work:
            plan = self.scheduler.plan()
            result = attempt_step(self.runner.run, plan)
            assert not isinstance(result, StepError)
            for output in self.scheduler.commit(plan, result):
                self.outputs[output.request_id].merge(output)
            self.cache.check_integrity()
        assert self.cache.num_held == 0
        return self.outputs


def set_nan(row: NDArray[np.float32]) -> None:
    row[3] = np.nan


def served(
    spoil: Callable[[int, NDArray[np.float32]], None] | None,
    submit: Callable[[Engine], None],
    backend_top_k: int = 0,
) -> dict[int, Output]:
    engine = Engine(backend_top_k)
    if spoil is not None:
        engine.context.spoil = spoil
    submit(engine)
    return engine.run()


def check(spoiled: dict[int, Output], sound: dict[int, Output], guilty: int, error: str) -> None:
    """Check that one request failed, and that the others gave the same as without a fault."""
    assert spoiled[guilty].finish_reason == "error"
    assert spoiled[guilty].error == error
    for number in sound.keys() - {guilty}:
        assert spoiled[number] == sound[number]
        assert sound[number].finish_reason == "length"


NAN = "the model computed no valid logits (NaN) for this request"


@pytest.mark.parametrize("backend_top_k", [0, BACKEND_TOP_K], ids=["logits", "backend"])
@pytest.mark.parametrize("guilty", range(len(SAMPLERS)))
def test_a_row_with_nan_ends_its_request_only(guilty: int, backend_top_k: int) -> None:
    def submit(engine: Engine) -> None:
        for number, params in enumerate(SAMPLERS):
            engine.submit(number, params)

    def spoil(token: int, row: NDArray[np.float32]) -> None:
        if token == 10 * guilty + 7:  # the last token of its prompt
            row[:] = np.nan

    spoiled, sound = served(spoil, submit, backend_top_k), served(None, submit, backend_top_k)
    check(spoiled, sound, guilty, NAN)
    assert spoiled[guilty].tokens == []


@pytest.mark.parametrize("backend_top_k", [0, BACKEND_TOP_K], ids=["logits", "backend"])
def test_the_best_tokens_alone_are_checked_too(backend_top_k: int) -> None:
    """All requests are greedy, so with a backend no logits are copied."""

    def submit(engine: Engine) -> None:
        for number in range(4):
            engine.submit(number, SamplingParams(temperature=0.0))

    def spoil(token: int, row: NDArray[np.float32]) -> None:
        if token == 10 * 2 + 7:
            row[4] = np.inf

    error = "the model computed no valid logits (infinity) for this request"
    check(served(spoil, submit, backend_top_k), served(None, submit, backend_top_k), 2, error)


@pytest.mark.parametrize("scores", [False, True])
def test_nan_in_scored_prompts_and_log_probabilities_fails_alone(scores: bool) -> None:
    def submit(engine: Engine) -> None:
        for number in range(4):
            engine.submit(number, SamplingParams(seed=number), logprobs=2, scores=scores)

    def spoil(token: int, row: NDArray[np.float32]) -> None:
        if token == 10 * 2 + (4 if scores else 7):
            set_nan(row)

    spoiled = served(spoil, submit)
    check(spoiled, served(None, submit), 2, NAN)
    assert spoiled[2].prompt_logprobs == spoiled[2].logprobs == []


@pytest.mark.parametrize("what", ["log_probabilities", "_score"])
def test_an_exception_in_log_probabilities_fails_alone(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scheduler.llama import runner

    def submit(engine: Engine) -> None:
        engine.submit(0, SamplingParams(seed=0))
        engine.submit(1, SamplingParams(seed=1), logprobs=1, scores=what == "_score")
        engine.submit(2, SamplingParams(seed=2))

    def fail(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    sound = served(None, submit)
    monkeypatch.setattr(runner, what, fail)
    check(served(None, submit), sound, 1, "the model failed on this request: ZeroDivisionError: a bug")


def test_a_backend_without_candidates_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(BACKEND_TOP_K)
    for number in range(3):
        engine.submit(number, SamplingParams(temperature=0.0))
    best, empty = engine.context.best, np.empty(0)

    def best_or_none(index: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        return (empty.astype(np.intp), empty.astype(np.float32)) if engine.context.tokens[index] == 17 else best(index)

    engine.context.best = best_or_none  # type: ignore[method-assign]
    outputs = engine.run()
    assert [outputs[number].finish_reason for number in range(3)] == ["length", "error", "length"]
    assert [bool(record.exc_info) for record in caplog.records if record.message == "a request failed"] == [True]


@pytest.mark.parametrize("backend_top_k", [0, BACKEND_TOP_K], ids=["logits", "backend"])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_the_mark_that_ends_reasoning_is_forced_for_its_request_only(backend_top_k: int, logprobs: int | None) -> None:
    limit = ThoughtLimit(2, [31, 32], [], ["<31><32>"], is_open=True)

    def submit(engine: Engine, *, limited: bool) -> None:
        for number, params in enumerate(SAMPLERS):
            thoughts = limit if limited and number % 2 else None
            engine.submit(number, params, logprobs=logprobs, thoughts=thoughts)

    free = served(None, lambda engine: submit(engine, limited=False), backend_top_k)
    bound = served(None, lambda engine: submit(engine, limited=True), backend_top_k)
    for number in range(len(SAMPLERS)):
        if number % 2:
            assert bound[number].tokens[:4] == [*free[number].tokens[:2], 31, 32]
            assert len(bound[number].tokens) == len(free[number].tokens)
        else:
            assert bound[number] == free[number]
        assert len(bound[number].logprobs) == (0 if logprobs is None else len(bound[number].tokens))
