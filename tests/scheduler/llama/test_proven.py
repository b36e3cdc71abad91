"""What was proven about a model is not proven again, until the model, the settings or the proofs change."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.config import EngineConfig
from scheduler.llama import device, draft_model, proven, version
from scheduler.llama.load import Parts, load
from scheduler.llama.trial import TrialError
from scheduler.messages import SamplingParams, Submit
from tests.models import write_windowed

Calls = list[str]


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    path = tmp_path / "model.gguf"
    write_windowed(path, 0)
    folder = str(tmp_path / "home" / "proven")
    return EngineConfig(str(path), ctx_len=256, max_seqs=2, threads=1, host_cache=1 << 24, proven_folder=folder)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The proofs that are run from now on."""
    calls: Calls = []

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return original(*given, **named)

        monkeypatch.setattr(module, name, counted)

    count(device, "prove")
    count(device, "prove_moves")
    count(draft_model, "prove")
    return calls


def files(config: EngineConfig) -> list[Path]:
    return sorted(Path(config.proven_folder).iterdir())


def answer(parts: Parts) -> list[int]:
    """Returns a greedy answer, whose prompt is partly that of an earlier request."""
    tokens: list[int] = []
    for number, last in enumerate((7, 8)):
        prompt = [5 + index % 20 for index in range(40)] + [last]
        parts.scheduler.submit(Submit(number, prompt, 6, SamplingParams(temperature=0.0, ignore_eos=True)))
        while parts.scheduler.has_work:
            plan = parts.scheduler.plan()
            for output in parts.scheduler.commit(plan, parts.runner.run(plan)):
                tokens += output.tokens
    return tokens


@pytest.mark.parametrize("layout", ["lanes", "pool"])
@pytest.mark.parametrize("window", [0, 16])
def test_the_next_start_proves_nothing_and_serves_the_same(
    config: EngineConfig, calls: Calls, layout: str, window: int
) -> None:
    write_windowed(Path(config.model_path), window)
    config = replace(config, kv_layout=layout)
    first = load(config)
    assert calls == ["prove", "prove_moves"]
    second = load(config)
    assert calls == ["prove", "prove_moves"]
    assert second.info.tier == first.info.tier == ("sequences" if window else "pages")
    assert second.info.kv_layout == first.info.kv_layout == layout
    assert answer(second) == answer(first)
    assert len(files(config)) == 1


def test_each_layout_and_setting_is_proven(config: EngineConfig, calls: Calls) -> None:
    changes: list[dict[str, Any]] = [
        {"kv_layout": "lanes"},
        {"kv_layout": "pool"},
        {"kv_type": "f32"},
        {"flash_attn": "off"},
        {"max_seqs": 1},
    ]
    for change in changes:
        del calls[:]
        load(replace(config, **change))
        assert calls, change


def test_another_model_in_the_same_file_is_proven(config: EngineConfig, calls: Calls) -> None:
    load(config)
    before = Path(config.model_path).stat()
    write_windowed(Path(config.model_path), 16)
    os.utime(config.model_path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    del calls[:]
    load(config)
    assert calls == ["prove", "prove_moves"]


def _other_proofs(_: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "modules", lambda: "others")


def _another_build(_: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "_llama_cpp", lambda: ("AVX9 = 1", []))


def _a_variable(_: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")


def _another_date(config: EngineConfig, _: pytest.MonkeyPatch) -> None:
    """Only samples of a large file are compared."""
    os.utime(config.model_path, (1, 1))


@pytest.mark.parametrize("change", [_other_proofs, _another_build, _a_variable, _another_date])
def test_what_may_change_a_result_is_proven_again(
    config: EngineConfig, calls: Calls, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    load(config)
    change(config, monkeypatch)
    del calls[:]
    load(config)
    assert calls == ["prove", "prove_moves"]


def test_results_of_other_versions_are_removed(config: EngineConfig) -> None:
    folder = Path(config.proven_folder)
    folder.mkdir(parents=True)
    (folder / "0123-4567-pool.json").write_text("{}")
    load(config)
    (path,) = files(config)
    assert path.name.startswith(version.modules())


def test_a_full_disk_leaves_no_half_file(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: Any) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    load(config)
    assert not files(config)


def test_a_file_that_is_gone_is_remembered_as_nothing(config: EngineConfig) -> None:
    gone = proven.Proven(replace(config, model_path="/no/such/file.gguf"), repacked=False)
    gone.save("pool", True)
    assert gone.load("pool") is None


NONSENSE = (
    b"",
    b"{",
    b"[]",
    b"1",
    b'{"kind": 1}',
    b'{"kind": "none", "reason": ""}',
    b'{"kind": "sequences"}',
    b"\xff",
)


@pytest.mark.parametrize("content", [*NONSENSE, b'{"kind": "sequences", "reason": "of a model whose pages move"}'])
def test_a_file_that_makes_no_sense_is_as_good_as_none(config: EngineConfig, calls: Calls, content: bytes) -> None:
    load(config)
    (path,) = files(config)
    whole = path.read_bytes()
    path.write_bytes(content)
    del calls[:]
    load(config)
    assert calls == ["prove", "prove_moves"]
    assert path.read_bytes() == whole


def test_without_a_writable_folder_each_start_proves(config: EngineConfig, calls: Calls) -> None:
    Path(config.proven_folder).parent.mkdir()
    Path(config.proven_folder).write_text("no folder")
    for _ in range(2):
        del calls[:]
        assert load(config).info.tier == "pages"
        assert calls == ["prove", "prove_moves"]


@pytest.mark.parametrize("flaw", ["cut", "moves", "pages"])
def test_what_has_failed_is_tried_again(
    config: EngineConfig, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, flaw: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrialError("not today")

    with monkeypatch.context() as faulty, caplog.at_level(logging.INFO):
        memory = "scheduler.llama.kv_memory.ContextMemory"
        names = {
            "cut": "scheduler.llama.proof._Trial.cut",
            "moves": f"{memory}.learn",
            "pages": f"{memory}._prove_pages",
        }
        faulty.setattr(names[flaw], fail)
        info = load(replace(config, kv_layout="pool")).info
    assert any("not today" in message for message in caplog.messages)
    assert info.tier == {"cut": "sequences", "moves": "none", "pages": "sequences"}[flaw]
    del calls[:]
    assert load(replace(config, kv_layout="pool")).info.tier == "pages"
    assert calls == ["prove", "prove_moves"]


def test_a_draft_model_is_proven_once(config: EngineConfig, calls: Calls) -> None:
    config = replace(config, draft_model=config.model_path)
    load(config)
    assert sorted(calls) == ["prove", "prove", "prove_moves"]
    del calls[:]
    load(config)
    assert not calls
