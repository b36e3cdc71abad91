"""Repacked weights: the same numbers in another form, and the same logits on several kinds of models."""

import ctypes
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.config import EngineConfig
from scheduler.errors import ModelError
from scheduler.llama import repack, weights
from scheduler.llama.model import Model, computes_groups
from scheduler.llama.stream_file import Part, num_bytes
from scheduler.llama.version import version_of
from scheduler.llama.weights import MAX_ERROR, open_model
from tests import tiny_models
from tests.models import write_q4_1
from tests.tiny_models import write_tiny_model

Q4_1 = gguf.GGMLQuantizationType.Q4_1
WANTED = pytest.mark.parametrize("wanted", ["auto", "on"])


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repacked weights are right on each processor, also where they are not faster."""
    monkeypatch.setattr(weights, "computes_groups", lambda: True)


def config_of(path: str, repack: str = "on", threads: int = 1) -> EngineConfig:
    return EngineConfig(path, threads=threads, repack=repack, gpu_layers=0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "cortex.engine"):
        yield caplog


def quantized(folder: Path, kind: str) -> str:
    write_tiny_model(folder / "plain.gguf", kind)
    write_q4_1(folder / f"{kind}.gguf", folder / "plain.gguf")
    return str(folder / f"{kind}.gguf")


def write_plain(path: Path, tensors: dict[str, NDArray[np.float32]], keys: dict[str, int] | None = None) -> None:
    """Writes a file with matrices as Q4_1 and vectors as they are."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (keys or {}).items():
        writer.add_uint32(key, value)
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, Q4_1), raw_dtype=Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def numbers(path: str) -> dict[str, NDArray[Any]]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }


def written(path: Path, parts: list[Part]) -> str:
    path.write_bytes(b"".join(part.make().tobytes() for part in parts))
    assert path.stat().st_size == num_bytes(parts)
    return str(path)


def restored(path: str) -> dict[str, NDArray[Any]]:
    """The matrices of a file, from its repacked form."""
    files = repack.repack(Path(path))
    found, adapter = (numbers(written(Path(f"{path}.{name}"), parts)) for name, parts in files._asdict().items())
    for name in [name.removesuffix(".lora_a") for name in adapter if name.endswith(".lora_a")]:
        found[name] = found[name] + adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"]
    return found


@given(
    seed=st.integers(0, 1000), columns=st.sampled_from([32, 96, 1024, 1056]), scale=st.sampled_from([0.0, 1e-3, 1.0])
)
def test_the_numbers_are_those_of_the_file(
    seed: int, columns: int, scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("numbers") / "model.gguf"
    random = np.random.default_rng(seed)
    wanted = (scale * random.standard_normal((16, columns)) + random.standard_normal()).astype(np.float32)
    write_plain(path, {"blk.0.ffn_up.weight": wanted, "blk.0.ffn_norm.weight": wanted[0]})
    expected, found = numbers(str(path)), restored(str(path))
    assert found.keys() == expected.keys()
    assert (found["blk.0.ffn_norm.weight"] == wanted[0]).all()
    blocks = expected["blk.0.ffn_up.weight"].reshape(16, -1, 32)
    offsets = np.abs(blocks).max(axis=(1, 2), keepdims=True)  # at least as large as the offsets
    assert (np.abs(found["blk.0.ffn_up.weight"].reshape(blocks.shape) - blocks) <= offsets / 100).all()


def test_queries_keys_and_values_become_one_matrix(tmp_path: Path) -> None:
    path = quantized(tmp_path, "dense")
    expected, found = numbers(path), restored(path)
    parts = [expected.pop(f"blk.0.attn_{name}.weight") for name in "qkv"]
    assert np.allclose(found["blk.0.attn_qkv.weight"], np.concatenate(parts), atol=0.01)
    assert expected.keys() - found.keys() == {f"blk.1.attn_{name}.weight" for name in "qkv"}


@pytest.mark.parametrize("other", ["attn_q.bias", "attn_qkv.weight"])
def test_queries_keys_and_values_stay_apart_if_they_cannot_be_one_matrix(tmp_path: Path, other: str) -> None:
    path, random = tmp_path / "model.gguf", np.random.default_rng(1)
    write_plain(
        path,
        {
            **{f"blk.0.attn_{name}.weight": random.standard_normal((8, 64)).astype(np.float32) for name in "qkv"},
            f"blk.0.{other}": np.ones(8, np.float32),
        },
    )
    expected, found = numbers(str(path)), restored(str(path))
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[name], expected[name], atol=0.05) for name in expected)


@pytest.mark.parametrize("kind", ["dense", "sliding_window", "experts"])
def test_kinds_of_models_compute_the_same_logits(tmp_path: Path, kind: str, log: pytest.LogCaptureFixture) -> None:
    config = config_of(quantized(tmp_path, kind))
    plain, repacked = Model(config.model_path, 0), open_model(config)
    assert repacked.is_repacked
    assert "weights repacked in" in log.text
    (other, expected), (_, row) = weights._logits(config, plain), weights._logits(config, repacked)
    assert np.linalg.norm(row - expected) <= MAX_ERROR * np.linalg.norm(other - expected)
    assert version_of(config, plain) != version_of(config, repacked)  # their KV differs in the last bits
    for model in (plain, repacked):
        model.close()


def _shapes_of(architecture: str) -> tuple[tiny_models.Values, tiny_models.Shapes]:
    """What differs from Llama in each architecture that can be repacked."""
    sizes, width = tiny_models.HEADS * tiny_models.HEAD, tiny_models.EMBEDDING
    shapes: tiny_models.Shapes = {}
    for layer in range(tiny_models.LAYERS):
        block = f"blk.{layer}"
        own = tiny_models._attention(block) | tiny_models._forward(block)
        if architecture == "phi3":
            own |= {f"{block}.attn_qkv": (3 * sizes, width), f"{block}.ffn_up": (2 * tiny_models.FORWARD, width)}
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del own[f"{block}.{name}"]
        if architecture == "qwen2":
            own |= {f"{block}.attn_{name}.bias": (sizes,) for name in "qkv"}
        if architecture in {"qwen3", "exaone4", "olmo2"}:
            norm = sizes if architecture == "olmo2" else tiny_models.HEAD
            own |= {f"{block}.attn_{name}_norm": (norm,) for name in "qk"}
        if architecture in {"exaone4", "olmo2"}:
            own |= {f"{block}.{name}_norm": (width,) for name in ("post_attention", "post_ffw")}
            del own[f"{block}.attn_norm"], own[f"{block}.ffn_norm"]
        shapes |= own
    return ({"logit_scale": 1.0, "attention.scale": 0.2} if architecture == "granite" else {}), shapes


@pytest.mark.parametrize(
    "architecture",
    ["mistral3", "qwen2", "qwen3", "phi3", "granite", "olmo2", "smollm3", "internlm2", "exaone4"],
)
def test_architectures_compute_the_same_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    assert architecture in repack.ARCHITECTURES
    monkeypatch.setitem(tiny_models.KINDS, architecture, lambda: (architecture, *_shapes_of(architecture)))
    model = open_model(config_of(quantized(tmp_path, architecture)))
    assert model.is_repacked  # so it has passed its proof
    model.close()


def test_the_embedded_model_is_repacked(model_path: str) -> None:
    plain, model = Model(model_path, 0), open_model(config_of(model_path, "auto"))
    assert model.is_repacked
    assert model.description == plain.description
    assert abs(model.num_bytes / plain.num_bytes - 1) < 0.05
    for each in (plain, model):
        each.close()


def test_only_weights_that_stay_in_the_file_count_as_mapped(model_path: str, tmp_path: Path) -> None:
    """The others are used memory for the system, so they must not count again. A new process has no memory to reuse."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    path = str(tmp_path / "q4_0.gguf")
    assert not llama_cpp.llama_model_quantize(model_path.encode(), path.encode(), ctypes.byref(params))
    ours = Model(model_path, 0, repack.repack(Path(model_path)))
    assert ours.mapped_bytes == 0
    ours.close()
    plain, llamas = _mapped_share(model_path), _mapped_share(path)
    assert 0.6 < plain <= 1
    assert (llamas < 0.4) == computes_groups()  # llama.cpp repacks it there


def _mapped_share(path: str) -> float:
    show = "import sys; from scheduler.llama.model import Model; m = Model(sys.argv[1], 0); "
    command = [sys.executable, "-c", f"{show}print(m.mapped_bytes / m.num_bytes)", path]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("threads", "is_repacked"), [(2, True), (3, False)])
def test_auto_depends_on_the_bytes_of_a_layer_for_each_thread(model_path: str, threads: int, is_repacked: bool) -> None:
    model = open_model(config_of(model_path, "auto", threads))
    assert model.is_repacked == is_repacked
    model.close()


@WANTED
@pytest.mark.parametrize("kind", ["latent", "hybrid", "recurrent"])
def test_other_architectures_stay_as_they_are(
    tmp_path: Path, kind: str, wanted: str, log: pytest.LogCaptureFixture
) -> None:
    model = open_model(config_of(quantized(tmp_path, kind), wanted))
    assert not model.is_repacked
    assert not log.messages
    model.close()


def test_files_in_parts_and_in_another_alignment_stay_as_they_are(tmp_path: Path) -> None:
    weights_of = {"blk.0.ffn_up.weight": np.ones((8, 64), np.float32)}
    write_plain(tmp_path / "plain.gguf", weights_of)
    write_plain(tmp_path / "part.gguf", weights_of, {"split.count": 2})
    write_plain(tmp_path / "aligned.gguf", weights_of, {"general.alignment": 64})
    assert repack.repackable(tmp_path / "plain.gguf") == (8 * 64 // 32 * 20, 1)
    assert repack.repackable(tmp_path / "part.gguf") == repack.repackable(tmp_path / "aligned.gguf") == (0, 0)


@WANTED
def test_weights_of_other_types_stay_as_they_are(tmp_path: Path, wanted: str) -> None:
    write_tiny_model(tmp_path / "plain.gguf", "dense")
    model = open_model(config_of(str(tmp_path / "plain.gguf"), wanted))
    assert not model.is_repacked
    model.close()


@pytest.mark.parametrize("reason", ["off", "layers on a GPU", "another processor"])
def test_reasons_to_take_the_file_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    config = config_of(quantized(tmp_path, "dense"), "off" if reason == "off" else "on")
    if reason == "layers on a GPU":
        monkeypatch.setattr(weights, "num_gpu_layers", lambda *_: 1)
    if reason == "another processor":
        monkeypatch.setattr(weights, "computes_groups", lambda: False)
    monkeypatch.setattr(weights, "repackable", None)  # is not called
    model = open_model(config)
    assert not model.is_repacked
    model.close()


def _without_memory(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(weights, "available_bytes", lambda _: 1000)
    return "there is not enough memory"


def _without_files(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without fopencookie
    return "this system has no files that are made while they are read"


def _with_a_file_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> str:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(repack, "_blocks", fail)
    return r"\[Errno 5\] Input/output error"


def _with_wrong_offsets(monkeypatch: pytest.MonkeyPatch) -> str:
    right = repack._offsets
    monkeypatch.setattr(repack, "_offsets", lambda blocks: np.zeros_like(right(blocks)))
    return "the logits would not be those of the file"


def _with_a_bad_adapter(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(repack, "_adapter", lambda *_: [Part(4, lambda: np.frombuffer(b"GGUF", np.uint8))])
    return "llama.cpp cannot load their adapter"


@pytest.mark.parametrize(
    "fault", [_without_memory, _without_files, _with_a_file_that_is_gone, _with_wrong_offsets, _with_a_bad_adapter]
)
def test_a_failure_leaves_the_file_as_it_is_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, fault: Any
) -> None:
    reason = fault(monkeypatch)
    config = config_of(quantized(tmp_path, "dense"))
    model = open_model(config)
    assert not model.is_repacked
    (message,) = log.messages
    assert re.match(f"the weights are not repacked: {reason}", message)
    weights._logits(config, model)
    model.close()


def _alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of models in memory, after each time that one was loaded or closed."""
    alive = [0]

    def counting(name: str, change: int) -> None:
        original = getattr(llama_cpp.llama_cpp, name)

        def counted(*given: Any) -> Any:
            alive.append(alive[-1] + change)
            return original(*given)

        monkeypatch.setattr(llama_cpp.llama_cpp, name, counted)

    counting("llama_model_load_from_file", 1)
    counting("llama_model_load_from_file_ptr", 1)
    counting("llama_model_free", -1)
    return alive


def test_only_one_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both might not fit: llama.cpp itself may repack the other weights of the file, so it does not stay mapped."""
    alive = _alive(monkeypatch)
    model = open_model(config_of(quantized(tmp_path, "dense")))
    assert model.is_repacked
    assert alive == [0, 1, 0, 1]
    model.close()


def test_an_adapter_that_cannot_be_made_leaves_no_model_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(repack, "_offsets", fail)
    alive = _alive(monkeypatch)
    model = open_model(config_of(quantized(tmp_path, "dense")))
    assert not model.is_repacked
    assert alive == [0, 1, 0, 1, 0, 1]
    model.close()


@pytest.mark.parametrize(("num_bytes", "is_worthwhile"), [(100 << 20, True), (99 << 20, False)])
def test_auto_needs_half_of_the_file(num_bytes: int, is_worthwhile: bool) -> None:
    config = config_of("model.gguf", "auto")
    assert weights._is_worthwhile(config, num_bytes, 1, 200 << 20) == is_worthwhile


@pytest.mark.parametrize(
    ("features", "computes"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | REPACK = 1 | ", True),
        ("CPU : SSE3 = 1 | AVX2 = 1 | ", False),
        ("CPU : SSE3 = 1 | AVX = 1 | REPACK = 1 | ", False),
        ("CPU : NEON = 1 | ARM_FMA = 1 | REPACK = 1 | ", False),
        ("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 | ", True),
        ("CUDA : ARCHS = 900 | CPU : NEON = 1 | MATMUL_INT8 = 1 | REPACK = 1 | ", True),
    ],
)
def test_processors_without_the_kernels_are_known(
    monkeypatch: pytest.MonkeyPatch, features: str, computes: bool
) -> None:
    monkeypatch.setattr("scheduler.llama.model.build_info", lambda: features)
    assert computes_groups() == computes


def test_a_file_is_proven_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    config = replace(config_of(quantized(tmp_path, "dense")), proven_folder=str(tmp_path / "proven"))
    _with_wrong_offsets(monkeypatch)
    for _ in range(2):
        assert not open_model(config).is_repacked
    monkeypatch.undo()
    monkeypatch.setattr(weights, "computes_groups", lambda: True)
    assert open_model(config).is_repacked
    monkeypatch.setattr(weights, "_logits", None)  # is not called again
    assert open_model(config).is_repacked
    write_tiny_model(tmp_path / "plain.gguf", "dense", seed=2)
    write_q4_1(Path(config.model_path), tmp_path / "plain.gguf")
    assert not open_model(config).is_repacked


def test_a_file_that_cannot_be_read_is_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3")
    with pytest.raises(ModelError, match=r"llama.cpp cannot load"):
        open_model(EngineConfig(str(tmp_path / "cut.gguf")))
