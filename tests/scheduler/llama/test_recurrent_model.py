"""A recurrent model: its conversations continue from saved states."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.config import EngineConfig
from scheduler.llama.context import Context
from scheduler.llama.load import Parts, load
from scheduler.llama.model import Model
from scheduler.messages import Output, SamplingParams, Submit
from scheduler.plan import Plan, StepError
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
class Reply:
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    """The logits from which each token was sampled."""
    num_cached: int = 0


def ask(parts: Parts, *prompts: list[int], count: int = 8) -> list[Reply]:
    """Serve all prompts together, with greedy sampling."""
    answers = {number: Reply(prompt) for number, prompt in enumerate(prompts)}
    for number, prompt in enumerate(prompts):
        parts.scheduler.submit(Submit(number, prompt, count, GREEDY))
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        record(parts, answers, plan, parts.scheduler.commit(plan, parts.runner.run(plan)))
    parts.scheduler.cache.check_integrity()
    return list(answers.values())


def record(parts: Parts, answers: dict[int, Reply], plan: Plan, outputs: list[Output]) -> None:
    sampling = [chunk.sequence.request_id for chunk in plan.chunks if chunk.samples]
    for request_id, row in zip(sampling, parts.runner.logits(len(sampling)) if sampling else [], strict=True):
        answers[request_id].rows.append(row.copy())
    for output in outputs:
        reply = answers[output.request_id]
        reply.tokens += output.tokens
        reply.num_cached = reply.num_cached or output.cached_tokens


def check(reference: Reference, reply: Reply) -> None:
    """Check that each token was sampled from the logits of a fresh computation.

    The control has a wrong last token before the loaded state's end, because a recurrent state forgets older tokens.
    """
    tokens, first = [*reply.prompt, *reply.tokens][:-1], len(reply.prompt) - 1
    scale = reference.scale(tokens, first, wrong=(reply.num_cached or first) - 1)
    scale.assert_same(np.array(reply.rows), reference.logits(tokens, first))


def test_the_model_is_recurrent(mamba: str, parts: Parts) -> None:
    assert not Model(mamba, 0).shares_prefixes
    assert parts.info.kv_layout == "pool"
    assert parts.info.kv_layout_reason == "the model has a recurrent state, not only KV cells"
    assert parts.info.host_cache > 0


def test_a_conversation_continues_from_its_saved_state(mamba: str, parts: Parts, reference: Reference) -> None:
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


def test_a_conversation_continues_after_a_restart(mamba: str, tmp_path: Path, reference: Reference) -> None:
    before = open_engine(mamba, tmp_path / "kv")
    (first,) = ask(before, PROMPT)
    before.scheduler.cache.close(5)
    after = open_engine(mamba, tmp_path / "kv")
    follow_up = [*PROMPT, *first.tokens, 7, 8, 9]
    (second,) = ask(after, follow_up)
    assert second.num_cached == len(PROMPT) + len(first.tokens) - 1
    check(reference, second)
    after.scheduler.cache.close(5)


def test_a_prompt_is_a_hit_even_if_the_answer_is_tokenized_differently(parts: Parts) -> None:
    ask(parts, PROMPT)
    (second,) = ask(parts, [*PROMPT, *range(4000, 4020)])
    assert second.num_cached == len(PROMPT)


def test_a_partly_shared_prompt_is_computed_again(parts: Parts) -> None:
    ask(parts, PROMPT)
    (other,) = ask(parts, PROMPT[:100] + list(range(3000, 3020)))
    assert other.num_cached == 0


def test_parallel_sequences_do_not_mix(parts: Parts, reference: Reference) -> None:
    prompts = [list(range(1000 * n, 1000 * n + 40 + 5 * n)) for n in range(2, 8)]
    for reply in ask(parts, *prompts):
        check(reference, reply)


def test_a_failed_step_leaves_no_state(parts: Parts, reference: Reference) -> None:
    """The state may contain tokens that are not committed. It cannot be cut, so it is dropped."""
    failures, scheduler = iter([False, True, False]), parts.scheduler
    scheduler.submit(Submit(1, PROMPT, 4, GREEDY))
    reply = Reply(PROMPT)
    while scheduler.has_work:
        plan = scheduler.plan()
        result = parts.runner.run(plan)
        if next(failures, False):
            scheduler.rollback(plan, StepError("injected failure"))
        else:
            record(parts, {1: reply}, plan, scheduler.commit(plan, result))
        scheduler.cache.check_integrity()
    assert scheduler.statistics().failed_steps == 1
    assert len(reply.tokens) == 4
    check(reference, reply)


def test_a_wrong_state_is_detected(parts: Parts, reference: Reference) -> None:
    (first,) = ask(parts, PROMPT)
    (second,) = ask(parts, [*PROMPT, *first.tokens, *range(2000, 2008)])
    assert second.num_cached
    check(reference, second)
    second.prompt[second.num_cached - 1] ^= 1
    with pytest.raises(AssertionError, match="are not all within"):
        check(reference, second)
