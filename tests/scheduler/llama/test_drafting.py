"""Drafts of the real engine: which models get them, and that they change no answer."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from scheduler.config import EngineConfig
from scheduler.llama.load import Parts, load
from scheduler.messages import Output, SamplingParams, Submit
from tests.tiny_models import write_tiny_model

EXACT = {"kv_type": "f32", "flash_attn": "off"}
"""Otherwise the size of a step changes the rounding of logits."""


def opened(path: Path, kind: str, **options: str) -> Parts:
    if not path.exists():
        write_tiny_model(path, kind)
    return load(EngineConfig(str(path), ctx_len=256, max_seqs=4, gpu_layers=0, threads=1, **EXACT, **options))  # type: ignore[arg-type]


def answers(parts: Parts, predictions: Mapping[int, list[int]] = MappingProxyType({})) -> dict[int, Output]:
    """The answers of four requests. A negative penalty lets the first two, which are greedy, repeat themselves."""
    scheduler = parts.scheduler
    outputs = {number: Output(number) for number in range(4)}
    for number in outputs:
        params = SamplingParams(temperature=0.7, seed=number, ignore_eos=True)
        if number < 2:
            params = SamplingParams(temperature=0.0, frequency_penalty=-1.0, ignore_eos=True)
        prompt, prediction = [1, *range(10, 30 + number)], predictions.get(number, [])
        submit = Submit(number, prompt, 120, params, prediction=prediction, logprobs=number or None)
        assert scheduler.submit(submit) is None
    while scheduler.has_work:
        plan = scheduler.plan()
        for output in scheduler.commit(plan, parts.runner.run(plan)):
            outputs[output.request_id].merge(output)
        scheduler.cache.check_integrity()
    return outputs


@pytest.mark.parametrize(("kind", "layout"), [("dense", "lanes"), ("dense", "pool"), ("sliding_window", "pool")])
def test_the_engine_drafts_and_answers_the_same(kind: str, layout: str, tmp_path: Path) -> None:
    plain = answers(opened(tmp_path / "model.gguf", kind, kv_layout=layout, draft="off"))
    parts = opened(tmp_path / "model.gguf", kind, kv_layout=layout)
    parts.scheduler._drafting._amounts = None  # as much as possible, however slow this machine is
    nearly = plain[2].tokens[:50] + plain[2].tokens[52:]
    drafted = answers(parts, {2: nearly, 3: plain[2].tokens})
    for number, output in drafted.items():
        assert output.tokens == plain[number].tokens
        assert [len(top) for _, top in output.logprobs] == [len(top) for _, top in plain[number].logprobs]
    sources = parts.scheduler.statistics().draft_sources
    assert sources["suffix"]["accepted_draft_tokens"] > 50
    assert sources["prediction"]["accepted_draft_tokens"] > 50


def test_a_recurrent_model_gets_no_drafts(tmp_path: Path) -> None:
    """Rejected tokens cannot be removed from its state."""
    parts = opened(tmp_path / "model.gguf", "recurrent")
    assert not parts.scheduler._drafting.is_on
    assert all(len(output.tokens) == 120 for output in answers(parts).values())
    assert parts.scheduler.statistics().draft_tokens == 0


def test_the_option_turns_drafts_off(tmp_path: Path) -> None:
    assert not opened(tmp_path / "model.gguf", "dense", draft="off").scheduler._drafting.is_on
    assert opened(tmp_path / "model.gguf", "dense").scheduler._drafting.is_on
