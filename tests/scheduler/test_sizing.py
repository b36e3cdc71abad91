"""Default sizes depend on the model and the machine. Given sizes are used as they are."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.tree import PAGE_TOKENS
from scheduler import sizing
from scheduler.config import KV_LAYOUTS, EngineConfig
from scheduler.errors import ModelError
from scheduler.shapes import Demand, LaneShapes, Shape
from scheduler.sizing import DEFAULT_CTX_LEN, Machine, Sizes

Model = Mapping[str, int | bool | str]
GIB = 1 << 30
SMALL: Model = {"trained_context": 8192, "model_bytes": 92 << 20, "kv_bytes_per_token": 23_040, "on_gpu": False}
"""SmolLM2 135M."""
LARGE: Model = {"trained_context": 131_072, "model_bytes": 5 * GIB, "kv_bytes_per_token": 131_072, "on_gpu": False}
"""Llama 3.1 8B."""


def choose(model: Model, available: int = 64 * GIB, **given: int | str) -> Sizes:
    """Returns the sizes for a model and a machine. The layout is a pool by default."""
    given.setdefault("kv_layout", "pool")
    config = EngineConfig("model.gguf", **given)  # type: ignore[arg-type]
    return sizing.choose(config, Machine(available_bytes=available, **model))  # type: ignore[arg-type]


def test_the_context_is_the_default_or_the_trained_one_if_shorter() -> None:
    assert choose({**SMALL, "trained_context": 2048}).ctx_len == 2048
    assert choose(LARGE).ctx_len == DEFAULT_CTX_LEN
    assert choose({**SMALL, "trained_context": 0}).ctx_len == DEFAULT_CTX_LEN


FIXED: Model = {"moves": "none"}
"""The KV of the model cannot be moved, so its memory has one size."""


def test_a_fixed_pool_holds_at_least_two_contexts() -> None:
    assert choose({**SMALL, **FIXED}).kv_tokens == 2 * 8192


def test_a_fixed_pool_is_larger_if_idle_pages_are_cheap() -> None:
    sizes = choose({**LARGE, **FIXED})
    assert sizes.kv_tokens * 131_072 == pytest.approx(0.7 * 5 * GIB, rel=0.01)
    assert sizes.shapes.is_fixed


def test_a_pool_is_never_more_than_all_sequences_can_use() -> None:
    assert choose({**LARGE, **FIXED}, max_seqs=3).kv_tokens == 3 * DEFAULT_CTX_LEN
    assert choose({**LARGE, **FIXED}, max_seqs=1, ctx_len=512).kv_tokens == 2 * 512
    assert choose(LARGE, max_seqs=3).kv_max == 3 * DEFAULT_CTX_LEN


@pytest.mark.parametrize("model", [LARGE, {**LARGE, **FIXED}])
def test_a_pool_takes_at_most_half_of_the_memory_but_at_least_one_context(model: Model) -> None:
    assert choose(model, available=2 * GIB).kv_max == 8192
    assert choose(model, available=3 * GIB).kv_max == 3 * GIB // 2 // 131_072
    assert choose(model, available=1 << 20).kv_max == 8192


def test_a_pool_starts_with_two_short_sequences_and_grows_to_a_context_for_each() -> None:
    sizes = choose(SMALL)
    assert (sizes.kv_tokens, sizes.kv_max, sizes.ctx_len) == (4096, 32 * 8192, 8192)
    assert choose(SMALL, ctx_len=512).kv_tokens == 2 * 512


@pytest.mark.parametrize("layout", ["lanes", "pool"])
def test_memory_on_a_gpu_grows_too(layout: str) -> None:
    sizes = choose({**SMALL, "on_gpu": True}, kv_layout=layout)
    assert (sizes.kv_tokens, sizes.kv_max) == (4096, 64 * 8192)


@pytest.mark.parametrize("layout", ["lanes", "pool"])
def test_given_sizes_of_the_start_and_at_most_are_used(layout: str) -> None:
    sizes = choose(SMALL, kv_layout=layout, kv_start=8192, kv_max=65_536)
    assert (sizes.kv_tokens, sizes.kv_max, sizes.ctx_len) == (8192, 65_536, 8192)
    sizes = choose(SMALL, kv_layout=layout, kv_max=1024)
    assert (sizes.kv_max, sizes.ctx_len) == (1024, 1024), "no request can be longer than the memory"


def test_lanes_start_with_two_and_are_no_longer_than_a_context() -> None:
    assert choose(SMALL, kv_layout="lanes").shapes.start == Shape(2, 4096)
    assert choose(SMALL, kv_layout="lanes", ctx_len=512).shapes.start == Shape(2, 1024)
    assert choose(SMALL, kv_layout="lanes", kv_start=512).shapes.start == Shape(2, 512)
    assert choose(SMALL, kv_layout="lanes", max_seqs=1).shapes.start == Shape(1, 2048)


def test_lanes_whose_states_move_whole_keep_their_number() -> None:
    """llama.cpp loads such a state only if there are as many lanes as where it was saved."""
    sizes = choose({**SMALL, "moves": "sequences"}, kv_layout="lanes", max_seqs=8)
    assert sizes.shapes.start == Shape(8, 8 * 512)
    assert sizes.shapes.wanted(Demand(20, 3000, 9000)) == Shape(8, 8 * 4096)
    assert choose({**SMALL, "moves": "sequences"}, 11 * GIB, kv_layout="auto").layout == "pool"


def test_a_context_that_changes_kv_with_its_length_keeps_its_length() -> None:
    long = {**SMALL, "original_context": 4096, "rescales": True}
    assert choose(long, kv_layout="lanes").shapes.start == Shape(2, 2 * 8192)
    assert choose(long, kv_layout="lanes", ctx_len=4096).shapes.start == Shape(2, 4096)
    assert choose(long, kv_layout="pool").shapes.is_fixed


def test_a_given_pool_size_is_used_and_limits_the_context() -> None:
    sizes = choose(SMALL, kv_tokens=1024)
    assert (sizes.kv_tokens, sizes.ctx_len) == (1024, 1024)
    sizes = choose(SMALL, kv_tokens=1024, ctx_len=512)
    assert (sizes.kv_tokens, sizes.ctx_len) == (1024, 512)


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(64, 64), (65, 96), (255, 256), (256, 256), (257, 512), (1000, 1024), (1024, 1024)]
)
def test_a_pool_is_rounded_like_in_llama_cpp(tokens: int, rounded: int) -> None:
    assert choose(SMALL, kv_tokens=tokens).kv_tokens == rounded


def test_a_gpu_runs_more_sequences_and_longer_steps() -> None:
    on_cpu, on_gpu = choose(SMALL), choose({**SMALL, "on_gpu": True})
    assert on_cpu.max_seqs < on_gpu.max_seqs
    assert on_cpu.batch_tokens < on_gpu.batch_tokens
    assert on_cpu.full_speed_tokens < on_gpu.full_speed_tokens <= on_gpu.batch_tokens


@pytest.mark.parametrize("max_seqs", [1, 32, 255])
def test_a_step_has_room_for_a_chunk_beside_all_sequences(max_seqs: int) -> None:
    assert choose(SMALL, max_seqs=max_seqs, batch_tokens=64).batch_tokens == max_seqs + 64
    assert choose(SMALL, max_seqs=max_seqs, batch_tokens=1000).batch_tokens == 1000


def test_threads_are_the_given_number_or_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(SMALL, threads=3).threads == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    assert choose(SMALL).threads == 3
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 2)
    assert choose(SMALL).threads == 2
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else None)
    assert choose(SMALL).threads == 3


@given(
    ctx_len=st.none() | st.integers(64, 200_000),
    max_seqs=st.none() | st.integers(1, 255),
    kv_tokens=st.none() | st.integers(64, 400_000),
    trained=st.integers(0, 200_000),
    model_mib=st.integers(1, 200_000),
    kv_bytes=st.integers(256, 2 << 20),
    available=st.integers(1 << 20, 1 << 40),
    kv_layout=st.sampled_from(KV_LAYOUTS),
)
def test_with_any_options_a_request_fits_into_memory(
    ctx_len: int | None,
    max_seqs: int | None,
    kv_tokens: int | None,
    trained: int,
    model_mib: int,
    kv_bytes: int,
    available: int,
    kv_layout: str,
) -> None:
    model: Model = {
        "trained_context": trained,
        "model_bytes": model_mib << 20,
        "kv_bytes_per_token": kv_bytes,
        "on_gpu": False,
    }
    options = {"ctx_len": ctx_len, "max_seqs": max_seqs, "kv_tokens": kv_tokens}
    given: dict[str, int | str] = {name: value for name, value in options.items() if value is not None}
    sizes = choose(model, available, kv_layout=kv_layout, **given)
    assert 0 < sizes.kv_tokens <= sizes.kv_max
    if isinstance(sizes.shapes, LaneShapes):
        assert sizes.kv_tokens % sizes.shapes.start.ids == 0
        assert sizes.shapes.max_lane >= sizes.ctx_len
        assert sizes.shapes.max_lane <= sizes.kv_max
    assert 0 < sizes.ctx_len <= sizes.kv_max
    assert sizes.kv_tokens % PAGE_TOKENS == sizes.kv_max % PAGE_TOKENS == 0
    longest = sizes.shapes.wanted(Demand(1, sizes.ctx_len, sizes.ctx_len))
    assert longest.tokens // (longest.ids if sizes.layout == "lanes" else 1) >= sizes.ctx_len
    assert sizes.kv_tokens >= (kv_tokens or 0)
    assert sizes.ctx_len <= (ctx_len or DEFAULT_CTX_LEN)
    assert sizes.batch_tokens > sizes.max_seqs


def test_lanes_hold_at_least_the_given_tokens() -> None:
    assert choose(SMALL, kv_layout="lanes", max_seqs=32, kv_tokens=65_537).kv_tokens >= 65_537


def test_a_model_whose_tokens_take_no_memory_gets_the_largest_pool() -> None:
    sizes = choose({**SMALL, "kv_bytes_per_token": 0}, max_seqs=4, ctx_len=512)
    assert sizes.kv_tokens == 4 * 512


def test_idle_pages_in_a_pool_are_limited_and_cost_less_on_a_gpu() -> None:
    sizes = choose(SMALL)
    assert 0 < sizes.idle_tokens * 23_040 <= 0.1 * (92 << 20)
    on_gpu = choose({**SMALL, "on_gpu": True})
    assert 6 * sizes.idle_tokens < on_gpu.idle_tokens < on_gpu.kv_max


def test_tiers_get_the_given_size_or_a_share_of_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    open_config = EngineConfig("model.gguf")
    assert sizing.host_bytes(open_config) == GIB // 4
    assert sizing.disk_bytes(open_config, tmp_path / "not" / "yet") == GIB // 10
    given = EngineConfig("model.gguf", host_cache=7, disk_cache=0)
    assert (sizing.host_bytes(given), sizing.disk_bytes(given, tmp_path)) == (7, 0)


def test_on_a_cpu_large_steps_are_not_mixed_if_attention_computes_blocks() -> None:
    assert choose(SMALL).max_mixed_tokens == 63
    assert choose(SMALL, kv_type="q8_0").max_mixed_tokens == 512
    assert choose(SMALL, flash_attn="off").max_mixed_tokens == 512
    assert choose({**SMALL, "on_gpu": True}).max_mixed_tokens == 2048


def test_auto_is_lanes_if_half_of_the_memory_has_eight_contexts() -> None:
    sizes = choose(SMALL, 64 * GIB, kv_layout="auto")
    assert (sizes.layout, sizes.kv_tokens, sizes.kv_max, sizes.ctx_len) == ("lanes", 4096, 32 * 8192, 8192)
    assert "contexts of 8192 tokens, and lanes need 8" in sizes.layout_reason
    assert choose(SMALL, 3 * GIB, kv_layout="auto").layout == "lanes"
    assert choose(SMALL, 2 * GIB, kv_layout="auto").layout == "pool"
    assert choose(LARGE, 16 * GIB, kv_layout="auto").layout == "lanes"
    sizes = choose(LARGE, 15 * GIB, kv_layout="auto")
    assert (sizes.layout, sizes.layout_reason) == (
        "pool",
        "there is memory for 7 contexts of 8192 tokens, and lanes need 8",
    )
    assert choose(LARGE, 8 * GIB, kv_layout="auto", max_seqs=4).layout == "lanes", "not more lanes than sequences"


@pytest.mark.parametrize(
    ("given", "part"),
    [({"kv_tokens": 16_384}, "--kv-tokens"), ({"host_cache": 0}, "host tier"), ({"kv_layout": "pool"}, "configured")],
)
def test_auto_is_a_pool_if_the_users_options_rule_out_lanes(given: dict[str, int | str], part: str) -> None:
    given.setdefault("kv_layout", "auto")
    sizes = choose(SMALL, 64 * GIB, **given)
    assert sizes.layout == "pool"
    assert part in sizes.layout_reason


def test_auto_follows_the_same_rule_on_a_gpu() -> None:
    on_gpu = {**LARGE, "on_gpu": True}
    assert choose(on_gpu, 70 * GIB, kv_layout="auto").layout == "lanes"
    assert choose(on_gpu, 15 * GIB, kv_layout="auto").layout == "pool"


def test_lanes_divide_the_given_tokens() -> None:
    sizes = choose(SMALL, kv_layout="lanes", kv_tokens=8192, max_seqs=8)
    assert (sizes.layout, sizes.ctx_len, sizes.kv_tokens) == ("lanes", 1024, 8192)
    assert choose(SMALL, kv_layout="auto", kv_tokens=32 * 1024, ctx_len=1024).layout == "lanes"


def test_in_lanes_prompts_and_answers_take_turns_and_a_step_holds_all_answers() -> None:
    sizes = choose(SMALL, kv_layout="lanes", max_seqs=100)
    assert (sizes.max_mixed_tokens, sizes.max_answers) == (0, 512)
    assert choose(SMALL, max_seqs=100).max_answers == 63


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"kv_tokens": 64, "kv_max": 300}, "--kv-tokens is a fixed size"),
        ({"kv_start": 4096, "kv_max": 256}, "must not be more than --kv-max (256)"),
        ({"kv_type": "q4_0", "flash_attn": "off"}, "--kv-type q4_0 needs flash attention"),
    ],
)
def test_options_that_contradict_each_other_are_named(given: Mapping[str, Any], part: str) -> None:
    with pytest.raises(ModelError, match=re.escape(part)):
        sizing.check_kv(EngineConfig("model.gguf", **given))


@pytest.mark.parametrize("kv_type", sizing.UNQUANTIZED)
def test_unquantized_kv_needs_no_flash_attention(kv_type: str) -> None:
    sizing.check_kv(EngineConfig("model.gguf", kv_type=kv_type, flash_attn="off"))
