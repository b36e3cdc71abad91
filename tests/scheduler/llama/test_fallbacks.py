"""What llama.cpp does not do is replaced when a model is loaded. With sliding windows, only what is there is shared."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.config import EngineConfig, EngineInfo
from scheduler.errors import ModelError
from scheduler.llama import device, proof
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import ContextMemory, LaneMemory, PoolMemory
from scheduler.llama.load import Parts, load
from scheduler.llama.model import Model
from scheduler.llama.trial import Part, Row, TrialError, compute
from scheduler.messages import SamplingParams, Submit
from tests.models import BERT_TOKENS, EMBEDDING, LAYERS, write_windowed

WINDOW = 16
LAYOUTS = pytest.mark.parametrize("layout", ["lanes", "pool"])


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "windowed.gguf"
    write_windowed(path, WINDOW)
    return str(path)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "dense.gguf"
    write_windowed(path, 0)
    return str(path)


def opened(path: str, **options: Any) -> Parts:
    return load(EngineConfig(path, **{"ctx_len": 256, "max_seqs": 2, "threads": 1, "host_cache": 1 << 24, **options}))


def text(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, len(BERT_TOKENS), length)]


class Served:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.num_requests = 0

    def next_logits(self, prompt: list[int]) -> tuple[NDArray[np.float32], int]:
        """Returns the logits after the prompt, and how many of its tokens were not computed."""
        self.num_requests += 1
        self.parts.scheduler.submit(
            Submit(self.num_requests, prompt, 1, SamplingParams(temperature=0.0, ignore_eos=True))
        )
        cached = 0
        while self.parts.scheduler.has_work:
            plan = self.parts.scheduler.plan()
            result = self.parts.runner.run(plan)
            row = self.parts.runner.logits(1)[0].copy()
            cached = max([cached, *(output.cached_tokens for output in self.parts.scheduler.commit(plan, result))])
        self.parts.scheduler.cache.check_integrity()
        return row, cached


def check(served: Served, path: str, prompt: list[int]) -> int:
    """Compares the logits with those of a fresh engine. Returns how many tokens were not computed."""
    row, cached = served.next_logits(prompt)
    expected, _ = Served(opened(path, host_cache=0)).next_logits(prompt)
    other, _ = Served(opened(path, host_cache=0)).next_logits(prompt[20:])
    distance, changed = np.linalg.norm(row - expected), np.linalg.norm(other - expected)
    assert changed > 0.01, "the logits depend on early tokens"
    assert distance < changed / 20
    return cached


@LAYOUTS
def test_a_prefix_of_a_longer_sequence_is_shared(windowed: str, layout: str) -> None:
    served = Served(opened(windowed, kv_layout=layout))
    first = text(1, 150)
    served.next_logits(first)
    assert check(served, windowed, first[:70] + text(2, 30)) == 70
    assert check(served, windowed, first[:40] + text(3, 9)) == 40
    check(served, windowed, first + text(4, 20))


@LAYOUTS
def test_evicted_sequences_are_loaded_whole_and_share_only_what_they_still_have(windowed: str, layout: str) -> None:
    served = Served(opened(windowed, kv_layout=layout, kv_tokens=512))
    first = text(1, 150)
    served.next_logits(first)
    for seed in range(10, 16):
        served.next_logits(text(seed, 200))
    assert check(served, windowed, first + text(4, 20)) == 150, "from the tier"
    check(served, windowed, first[:70] + text(5, 30))
    assert check(served, windowed, first[:70] + text(6, 20)) == 70, "from the sequence that was computed just now"


def test_cells_that_left_a_window_are_reused_without_harm(windowed: str) -> None:
    served = Served(opened(windowed, kv_layout="pool", kv_tokens=512, host_cache=0, max_seqs=4))
    first = text(1, 150)
    for seed in range(20, 28):
        served.next_logits(first[:100] + text(seed, 9))
        served.next_logits(text(100 + seed, 40 + 5 * seed))
        check(served, windowed, first[: 30 + 3 * (seed - 20)] + text(300 + seed, 5))


def test_a_sequence_is_not_cut_to_tokens_whose_windows_are_lost(windowed: str) -> None:
    model, config = Model(windowed, 0), EngineConfig(windowed, threads=1)
    context = Context(model, config, kv_tokens=256, num_ids=2, num_outputs=2, batch_tokens=256, threads=1)
    memory = PoolMemory(context, WINDOW)
    compute(context, Part(1, text(1, 20), 0))
    compute(context, Part(0, text(2, 200), 0))
    memory.remove(1, 0, -1)
    for position in range(200, 255):  # into the 20 free cells, then into cells that left the window
        compute(context, Part(0, [5], position))
    intact = memory.intact_from(0)
    assert 30 < intact < 100
    assert memory.remove(0, intact, -1)
    assert not memory.remove(0, 20, -1), "nothing is left in the layer with the window"
    context.close()


def test_a_copy_of_a_lane_does_not_depend_on_what_happens_to_the_lane_before_the_next_step(windowed: str) -> None:
    model, config = Model(windowed, 0), EngineConfig(windowed, threads=1)
    context = Context(
        model, config, kv_tokens=1024, num_ids=4, num_outputs=4, batch_tokens=64, threads=1, unified=False
    )
    memory = LaneMemory(context, WINDOW)
    first, second = text(1, 40), text(2, 40)
    (expected,) = compute(context, Part(3, first[:31], 0))
    (other,) = compute(context, Part(2, second, 0))
    compute(context, Part(0, first, 0))
    saved = memory.save(2, 0, 40)
    assert memory.share(0, 1, 0, 30)
    assert memory.load(0, 0, 40, saved)
    (row,) = compute(context, Part(1, first[30:31], 30))
    assert np.linalg.norm(row - expected) < np.linalg.norm(other - expected) / 20
    context.close()


def test_the_bytes_of_a_token_are_measured(windowed: str, model_path: str) -> None:
    for path, num_bytes, window in (
        (model_path, 2 * 30 * 3 * 64 * 2, 0),
        (windowed, 2 * LAYERS * EMBEDDING * 2 + proof.RECORD_BYTES, WINDOW),
    ):
        facts = proof.measure(Model(path, 0), EngineConfig(path, threads=1))
        assert (facts.bytes_per_token, facts.window) == (num_bytes, window)


def test_pages_of_a_longer_context_than_the_original_one_have_their_own_version(windowed: str, tmp_path: Path) -> None:
    """Some models rotate K differently there, even for the first tokens."""
    for ctx_len in (512, 1024, 2048):
        opened(windowed, ctx_len=ctx_len, kv_layout="lanes", disk_folder=str(tmp_path), disk_cache=1 << 20)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


# Fallbacks


def info_of(path: str, **options: Any) -> EngineInfo:
    served = Served(opened(path, **options))
    served.next_logits(text(1, 40))
    return served.parts.info


@pytest.mark.parametrize("layout", ["lanes", "auto"])
def test_lanes_that_cannot_be_copied_become_a_pool(
    windowed: str, layout: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(LaneMemory, "_share", lambda *_: False)
    info = info_of(windowed, kv_layout=layout)
    assert info.kv_layout == "pool"
    assert info.kv_layout_reason == "lanes do not work with this model: llama.cpp does not share a prefix"
    assert [record.message for record in caplog.records if record.name == "cortex.engine"] == [
        f"the KV layout is pool: {info.kv_layout_reason}"
    ]


def test_a_layout_that_shares_wrong_cells_shares_nothing(windowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Context.share
    monkeypatch.setattr(Context, "share", lambda self, source, target, _, stop: share(self, source, target, 2, stop))
    served = Served(opened(windowed, kv_layout="pool"))
    assert not served.parts.scheduler.cache.sharing
    assert served.parts.info.tier == "sequences"
    served.next_logits(text(1, 60))
    assert check(served, windowed, text(1, 60) + text(2, 9)) == 60, "from the tier"


def test_tiers_move_whole_sequences_if_pages_fail_and_nothing_if_both_fail(
    dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: ContextMemory) -> None:
        raise TrialError("it fails")

    assert info_of(dense).tier == "pages"
    monkeypatch.setattr(ContextMemory, "_prove_pages", fails)
    assert info_of(dense).tier == "sequences"
    monkeypatch.setattr(ContextMemory, "_prove_whole", fails)
    info = info_of(dense)
    assert (info.tier, info.host_cache, info.kv_layout) == ("none", 0, "pool")
    assert info.kv_layout_reason == "pages evicted from lanes could not be kept"


def test_sequences_that_disturb_each_other_are_computed_one_at_a_time(
    windowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(context: Context, *parts: Part) -> list[Row]:
        rows = compute(context, *parts)
        return [row[::-1] for row in rows] if len(parts) > 1 else rows

    monkeypatch.setattr(proof, "compute", disturbed)
    assert info_of(windowed, max_seqs=4).max_seqs == 1


def test_an_architecture_on_which_llama_cpp_aborts_runs_one_sequence_at_a_time(
    windowed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "ONE_AT_A_TIME", {"gemma3"})
    assert info_of(windowed).max_seqs == 1
    assert "one sequence is computed at a time" in caplog.text


def test_a_model_without_valid_logits_is_refused(windowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Context.logits
    monkeypatch.setattr(Context, "logits", lambda self, rows: logits(self, rows) * np.float32(np.nan))
    with pytest.raises(ModelError, match=r"windowed\.gguf: .*: it computes no valid logits$"):
        opened(windowed)


def test_any_exception_while_loading_is_one_line_with_its_cause(
    windowed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("one\ntwo")

    monkeypatch.setattr(device, "measure", fails)
    with caplog.at_level(logging.INFO), pytest.raises(ModelError) as error:
        opened(windowed)
    assert str(error.value) == f"{Path(windowed)} cannot be loaded: KeyError: 'one\\ntwo'"
    assert "Traceback" not in caplog.text, "it is logged at level DEBUG only"
