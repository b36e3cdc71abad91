"""What a GPU changes, with a fake of ggml's devices: where KV memory comes from, and who drafts."""

from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from scheduler.config import EngineConfig
from scheduler.llama import device, gpu, load
from scheduler.llama.device import Device, kv_memory
from scheduler.llama.draft_model import OpenedDrafts
from scheduler.llama.gpu import GPUMemory
from scheduler.llama.model import Model

DEVICES = [(0, 100, 200), (1, 30, 40), (2, 5, 6), (3, 7, 8)]
"""ggml's type, free bytes and all bytes: a CPU, two GPUs, an accelerator of CPUs."""


def fill(index: int, free: Any, total: Any) -> None:
    _, free._obj.value, total._obj.value = DEVICES[index]


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ggml = SimpleNamespace(
        ggml_backend_dev_count=lambda: len(DEVICES),
        ggml_backend_dev_get=lambda index: index,
        ggml_backend_dev_type=lambda index: DEVICES[index][0],
        ggml_backend_dev_memory=fill,
    )
    monkeypatch.setattr(gpu, "_ggml", lambda: ggml)


@pytest.mark.usefixtures("fake_gpus")
def test_only_gpus_count() -> None:
    assert gpu.memory() == GPUMemory(free=35, total=46)


def test_ggml_has_these_functions() -> None:
    free, total = gpu.memory()
    assert 0 <= free <= total


def memory_with(num_on_gpu: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(device, "num_gpu_layers", lambda *_: num_on_gpu)
    place = kv_memory(EngineConfig("model.gguf"), cast(Model, SimpleNamespace(num_layers=10)))
    return place.available(), place.total_bytes


@pytest.mark.usefixtures("fake_gpus")
def test_kv_memory_is_where_the_layers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2000))
    assert memory_with(0, monkeypatch) == (1000, 2000)
    assert memory_with(10, monkeypatch) == (35, 46)
    assert memory_with(5, monkeypatch) == (70, 92), "half of each token's KV is on the GPU"


@pytest.mark.parametrize(
    ("draft", "on_gpu", "with_model", "num_drafters"),
    [
        ("auto", False, False, 2),
        ("auto", True, False, 0),
        ("auto", True, True, 3),
        ("on", True, False, 2),
        ("off", False, False, 0),
    ],
)
def test_on_a_gpu_auto_drafts_only_with_a_draft_model(
    draft: str, on_gpu: bool, with_model: bool, num_drafters: int
) -> None:
    opened = cast(Device, SimpleNamespace(cache=SimpleNamespace(sharing=True)))
    drafts = cast(OpenedDrafts, SimpleNamespace(drafter=object())) if with_model else None
    config = EngineConfig("model.gguf", draft=draft)
    assert len(load._drafters(config, opened, drafts, on_gpu=on_gpu)) == num_drafters
