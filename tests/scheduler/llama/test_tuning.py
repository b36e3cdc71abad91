"""Tuning measures the fastest settings and saves them for a model and a machine. Given options override them."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scheduler.config import EngineConfig
from scheduler.llama import tuning
from scheduler.llama.load import load
from scheduler.llama.model import Model
from scheduler.llama.tuning import (
    BATCH_TOKENS,
    ROUNDS,
    ContextProbe,
    Tuning,
    fastest,
    keep,
    sweep,
    thread_counts,
    tuned,
)
from scheduler.llama.version import place_of
from scheduler.llama.weights import open_model
from scheduler.machine import cores
from scheduler.sizing import DEFAULT_BATCH_TOKENS


class FakeProbe:
    """A machine whose tokens take `seconds` with the best threads, divided by the speed of the token budget."""

    def __init__(self, seconds: float, *, best_threads: int, speeds: dict[int, float] | None = None) -> None:
        self._seconds = seconds
        self._best_threads = best_threads
        self._speeds = speeds or {}
        self.threads = 0
        self.tokens: Counter[int] = Counter()

    def use_threads(self, count: int) -> None:
        self.threads = count

    def prompt(self, num_tokens: int, batch_tokens: int) -> float:
        self.tokens[batch_tokens] += num_tokens
        slower = 1 if self.threads == self._best_threads else 1.5
        return num_tokens * self._seconds * slower / self._speeds.get(batch_tokens, 1.0)

    def answers(self) -> float:
        return 64 * self._seconds * (1 if self.threads == self._best_threads else 1.5)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cores", lambda: 8)
    monkeypatch.setattr(tuning, "hardware_threads", lambda: 16)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("best", [4, 8, 16])
def test_the_fastest_threads_and_steps_are_found(best: int) -> None:
    calls: list[tuple[int, int]] = []
    probe = FakeProbe(0.001, best_threads=best, speeds={256: 1.2, 1024: 1.1})
    found, measured = sweep(probe, 60.0, lambda done, total: calls.append((done, total)))
    assert found == Tuning(best, 256)
    assert set(measured.threads) == {4, 8, 16}
    assert set(measured.batch_tokens) == set(BATCH_TOKENS)
    assert measured.batch_tokens[256] == pytest.approx(measured.prompt_tokens * 0.001 / 1.2)
    assert calls[-1] == (len(calls), len(calls))
    assert len(calls) == ROUNDS * (3 + 4)


@pytest.mark.usefixtures("eight_cores")
def test_a_slow_model_keeps_its_default_steps_within_the_time() -> None:
    probe = FakeProbe(0.02, best_threads=8, speeds={128: 9.0})
    found, measured = sweep(probe, 60.0, lambda *_: None)
    assert found == Tuning(8, DEFAULT_BATCH_TOKENS)
    assert measured.batch_tokens == {}
    assert sum(probe.tokens.values()) * 0.02 < 2 * 60.0


@pytest.mark.parametrize(("gain", "expected"), [(1.01, 512), (1.02, 512), (1.05, 128)])
def test_a_small_gain_is_ignored_as_noise(gain: float, expected: int) -> None:
    assert fastest({128: [9.0, 1.0 / gain, 0.1], 512: [1.0, 1.0, 5.0]}, 512) == expected


def test_the_defaults_are_measured_too() -> None:
    assert cores() in thread_counts()
    assert DEFAULT_BATCH_TOKENS in BATCH_TOKENS


@pytest.fixture
def config(model_path: Path, tmp_path: Path) -> EngineConfig:
    return EngineConfig(str(model_path), ctx_len=512, max_seqs=2, gpu_layers=0, tuning_folder=str(tmp_path / "tuned"))


def test_saved_results_replace_options_that_are_not_given(config: EngineConfig) -> None:
    model = open_model(config)
    assert tuned(config, model) == config
    keep(config, model, Tuning(1, 256))
    info = load(config).info
    assert (info.threads, info.batch_tokens) == (1, 256)
    given = dataclasses.replace(config, threads=2, batch_tokens=300)
    assert tuned(given, model) == given
    assert tuned(dataclasses.replace(config, tuning_folder=""), model).threads is None


def test_saved_results_are_valid_for_the_same_model_and_machine_only(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(config.model_path, 0)
    keep(config, model, Tuning(1, 256))
    for change in ({"kv_type": "q8_0"}, {"gpu_layers": 3}, {"flash_attn": "off"}):
        other = dataclasses.replace(config, **change)
        assert tuned(other, model) == other
    monkeypatch.setattr("scheduler.llama.version.machine", lambda: ("another",))
    assert tuned(config, model) == config


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"threads": 0, "batch_tokens": 512}',
        b'{"threads": 2}',
        b'{"threads":"x","batch_tokens":512}',
    ],
)
def test_an_invalid_file_is_ignored_with_a_warning(
    config: EngineConfig, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model(config.model_path, 0)
    keep(config, model, Tuning(1, 256))
    (path,) = Path(config.tuning_folder).iterdir()
    assert path.name == f"{place_of(config, model)}.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert tuned(config, model) == config
    assert "ignored an invalid tuning file" in caplog.text


def test_the_real_model_is_measured(config: EngineConfig) -> None:
    probe = ContextProbe(config, Model(config.model_path, 0))
    try:
        found, measured = sweep(probe, 1.0, lambda *_: None)
    finally:
        probe.close()
    assert found.batch_tokens == DEFAULT_BATCH_TOKENS
    assert found.threads in measured.threads
    seconds: dict[int, Any] = measured.threads
    assert all(0 < each < 60 for each in seconds.values())
