"""A model that keeps a state in place of cells: served, and its conversations go on where they stopped."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.config import EngineConfig
from scheduler.llama.context import Context, Model
from scheduler.llama.load import Parts, load
from scheduler.messages import Output, SamplingParams, Submit
from scheduler.plan import Plan
from tests.closeness import Reference
from tests.models import write_mamba

PROMPT = list(range(1000, 1150))
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


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
    return load(EngineConfig(mamba, ctx_len=512, max_seqs=4, gpu_layers=0, threads=1, **disk, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(mamba: str) -> Iterator[Reference]:
    model = Model(mamba, 0)
    config = EngineConfig(mamba)
    context = Context(model, config, kv_tokens=512, num_ids=2, num_outputs=256, batch_tokens=256, threads=1)
    yield Reference(context)
    context.close()
    model.close()


@dataclass
class Said:
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    """The logits that each token was chosen from."""
    num_cached: int = 0


def ask(parts: Parts, *prompts: list[int], count: int = 8) -> list[Said]:
    """All at once; greedy."""
    answers = {number: Said(prompt) for number, prompt in enumerate(prompts)}
    for number, prompt in enumerate(prompts):
        parts.scheduler.submit(Submit(number, prompt, count, GREEDY))
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        book(parts, answers, plan, parts.scheduler.commit(plan, parts.runner.run(plan)))
    parts.scheduler.cache.check_integrity()
    return list(answers.values())


def book(parts: Parts, answers: dict[int, Said], plan: Plan, outputs: list[Output]) -> None:
    sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
    for request_id, row in zip(sampling, parts.runner.logits(len(sampling)) if sampling else [], strict=True):
        answers[request_id].rows.append(row.copy())
    for output in outputs:
        said = answers[output.request_id]
        said.tokens += output.tokens
        said.num_cached = said.num_cached or output.cached_tokens


def check(reference: Reference, said: Said) -> None:
    """Each token was chosen from the logits that a fresh computation gives.

    The control has another last token where the state was taken up: what came long before it has faded.
    """
    tokens, first = [*said.prompt, *said.tokens][:-1], len(said.prompt) - 1
    scale = reference.scale(tokens, first, wrong=(said.num_cached or first) - 1)
    scale.assert_same(np.array(said.rows), reference.logits(tokens, first))


def test_it_is_of_the_kind(mamba: str, parts: Parts) -> None:
    assert not Model(mamba, 0).shares_prefixes
    assert parts.info.kv_layout == "pool"
    assert parts.info.kv_layout_reason == "the model keeps a state, not cells"
    assert parts.info.host_cache > 0


def test_a_conversation_goes_on_where_it_stopped(mamba: str, parts: Parts, reference: Reference) -> None:
    (first,) = ask(parts, PROMPT)
    assert first.num_cached == 0
    follow_up = PROMPT + first.tokens + list(range(2000, 2030))
    (second,) = ask(parts, follow_up)
    assert second.num_cached == len(PROMPT) + len(first.tokens) - 1
    check(reference, second)
    (cold,) = ask(open_engine(mamba, host_cache=0), follow_up)
    assert cold.num_cached == 0
    check(reference, cold)
    (third,) = ask(parts, follow_up + second.tokens + [5])
    assert third.num_cached == len(follow_up) + len(second.tokens) - 1


def test_after_a_restart_too(mamba: str, tmp_path: Path, reference: Reference) -> None:
    before = open_engine(mamba, tmp_path / "kv")
    (first,) = ask(before, PROMPT)
    before.scheduler.cache.close(5)
    after = open_engine(mamba, tmp_path / "kv")
    follow_up = [*PROMPT, *first.tokens, 7, 8, 9]
    (second,) = ask(after, follow_up)
    assert second.num_cached == len(PROMPT) + len(first.tokens) - 1
    check(reference, second)
    after.scheduler.cache.close(5)


def test_what_was_answered_may_come_back_in_other_tokens(parts: Parts) -> None:
    ask(parts, PROMPT)
    (second,) = ask(parts, [*PROMPT, *range(4000, 4020)])
    assert second.num_cached == len(PROMPT)


def test_who_shares_only_a_part_computes_it_again(parts: Parts) -> None:
    ask(parts, PROMPT)
    (other,) = ask(parts, PROMPT[:100] + list(range(3000, 3020)))
    assert other.num_cached == 0


def test_many_at_once_are_each_their_own(parts: Parts, reference: Reference) -> None:
    prompts = [list(range(1000 * n, 1000 * n + 40 + 5 * n)) for n in range(2, 8)]
    for said in ask(parts, *prompts):
        check(reference, said)


def test_a_step_that_failed_leaves_no_state_behind(parts: Parts, reference: Reference) -> None:
    """The state may be ahead of what is known to be computed; it cannot be taken back, so it is not used."""
    failures, scheduler = iter([False, True, False]), parts.scheduler
    scheduler.submit(Submit(1, PROMPT, 4, GREEDY))
    said = Said(PROMPT)
    while scheduler.has_work:
        plan = scheduler.plan()
        result = parts.runner.run(plan)
        if next(failures, False):
            scheduler.rollback(plan)
        else:
            book(parts, {1: said}, plan, scheduler.commit(plan, result))
        scheduler.cache.check_integrity()
    assert scheduler.statistics().failed_steps == 1
    assert len(said.tokens) == 4
    check(reference, said)


def test_a_wrong_state_would_be_seen(parts: Parts, reference: Reference) -> None:
    (first,) = ask(parts, PROMPT)
    (second,) = ask(parts, [*PROMPT, *first.tokens, *range(2000, 2008)])
    assert second.num_cached
    check(reference, second)
    second.prompt[second.num_cached - 1] ^= 1
    with pytest.raises(AssertionError, match="are not all within"):
        check(reference, second)
