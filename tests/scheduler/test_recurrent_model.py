"""A model that keeps a state in place of cells: served, and its conversations go on where they stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scheduler.config import EngineConfig
from scheduler.engine import Parts, load
from scheduler.llama import Model
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import Plan, Result, StepError
from tests.models import write_mamba

PROMPT = list(range(1000, 1150))


@pytest.fixture(scope="module")
def mamba(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "mamba.gguf"
    write_mamba(path, model_path)
    return str(path)


@pytest.fixture
def parts(mamba: str, tmp_path: Path) -> Iterator[Parts]:
    parts = open_engine(mamba, tmp_path / "kv")
    yield parts
    parts.scheduler.cache.close(1)


def open_engine(mamba: str, folder: Path | None = None, **options: int) -> Parts:
    disk = {"disk_cache": 1 << 24, "disk_folder": str(folder)} if folder else {}
    return load(EngineConfig(mamba, ctx_len=512, max_seqs=4, gpu_layers=0, **disk, **options))  # type: ignore[arg-type]


@dataclass
class Said:
    tokens: list[int]
    logprobs: list[float]
    num_cached: int = 0


def ask(parts: Parts, *prompts: list[int], count: int = 8) -> list[Said]:
    """All at once; greedy."""
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    answers = {number: Said([], []) for number in range(len(prompts))}
    for number, prompt in enumerate(prompts):
        parts.scheduler.submit(Submit(number, prompt, count, params, logprobs=0))
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        for output in parts.scheduler.commit(plan, parts.runner.run(plan)):
            said = answers[output.request_id]
            said.tokens += output.tokens
            said.logprobs += [logprob for logprob, _ in output.logprobs]
            said.num_cached = said.num_cached or output.cached_tokens
    parts.scheduler.cache.check_integrity()
    return list(answers.values())


def assert_alike(one: Said, other: Said) -> None:
    assert one.tokens[0] == other.tokens[0]
    assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=0.05)


def test_it_is_of_the_kind(mamba: str, parts: Parts) -> None:
    assert not Model(mamba, 0).shares_prefixes
    assert parts.info.kv_layout == "pool"
    assert parts.info.kv_layout_reason == "the model keeps a state, not cells"
    assert parts.info.host_cache > 0


def test_a_conversation_goes_on_where_it_stopped(mamba: str, parts: Parts) -> None:
    (first,) = ask(parts, PROMPT)
    assert first.num_cached == 0
    follow_up = PROMPT + first.tokens + list(range(2000, 2030))
    (second,) = ask(parts, follow_up)
    assert second.num_cached == len(PROMPT) + len(first.tokens) - 1
    (cold,) = ask(open_engine(mamba, host_cache=0), follow_up)
    assert cold.num_cached == 0
    assert_alike(second, cold)
    (third,) = ask(parts, follow_up + second.tokens + [5])
    assert third.num_cached == len(follow_up) + len(second.tokens) - 1


def test_after_a_restart_too(mamba: str, tmp_path: Path) -> None:
    before = open_engine(mamba, tmp_path / "kv")
    (first,) = ask(before, PROMPT)
    before.scheduler.cache.close(5)
    after = open_engine(mamba, tmp_path / "kv")
    follow_up = [*PROMPT, *first.tokens, 7, 8, 9]
    (second,) = ask(after, follow_up)
    assert second.num_cached == len(PROMPT) + len(first.tokens) - 1
    (cold,) = ask(open_engine(mamba, host_cache=0), follow_up)
    assert_alike(second, cold)
    after.scheduler.cache.close(5)


def test_what_was_answered_may_come_back_in_other_tokens(parts: Parts) -> None:
    ask(parts, PROMPT)
    (second,) = ask(parts, [*PROMPT, *range(4000, 4020)])
    assert second.num_cached == len(PROMPT)


def test_who_shares_only_a_part_computes_it_again(parts: Parts) -> None:
    ask(parts, PROMPT)
    (other,) = ask(parts, PROMPT[:100] + list(range(3000, 3020)))
    assert other.num_cached == 0


def test_many_at_once_are_each_their_own(parts: Parts) -> None:
    prompts = [list(range(1000 * n, 1000 * n + 40 + 5 * n)) for n in range(2, 8)]
    together = ask(parts, *prompts)
    for prompt, said in zip(prompts, together, strict=True):
        (alone,) = ask(parts, prompt)
        assert_alike(said, alone)


def test_a_step_that_failed_leaves_no_state_behind(mamba: str, parts: Parts) -> None:
    """The state may be ahead of what is known to be computed; it cannot be taken back, so it is not used."""
    (cold,) = ask(open_engine(mamba, host_cache=0), PROMPT)
    run, failures = parts.runner.run, iter([False, True, False])

    def failing(plan: Plan) -> Result:
        result = run(plan)
        if next(failures, False):
            raise StepError("afterwards")
        return result

    scheduler = parts.scheduler
    scheduler.submit(Submit(1, PROMPT, 4, SamplingParams(temperature=0.0, ignore_eos=True), logprobs=0))
    said = Said([], [])
    while scheduler.has_work:
        plan = scheduler.plan()
        try:
            outputs = scheduler.commit(plan, failing(plan))
        except StepError:
            outputs = scheduler.rollback(plan)
        for output in outputs:
            said.tokens += output.tokens
            said.logprobs += [logprob for logprob, _ in output.logprobs]
        scheduler.cache.check_integrity()
    assert scheduler.statistics().failed_steps == 1
    assert len(said.tokens) == 4
    assert_alike(said, cold)
    assert said.logprobs[1] == pytest.approx(cold.logprobs[1], abs=0.05)
