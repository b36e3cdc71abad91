"""The runner on a fake context: a failure of one request is reported for this request only."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.messages import Output, SamplingParams, ThoughtLimit
from tests.scheduler.llama.fake_engine import BACKEND_TOP_K, Engine

SAMPLERS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=5),
    SamplingParams(seed=3, top_p=0.9, presence_penalty=0.5),
    SamplingParams(seed=4, mirostat=2),
]


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
    from scheduler import verification
    from scheduler.llama import runner

    def submit(engine: Engine) -> None:
        engine.submit(0, SamplingParams(seed=0))
        engine.submit(1, SamplingParams(seed=1), logprobs=1, scores=what == "_score")
        engine.submit(2, SamplingParams(seed=2))

    def fail(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    sound = served(None, submit)
    monkeypatch.setattr(runner if what == "_score" else verification, what, fail)
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
