"""What is loaded says how its memory is laid out, and why."""

from typing import Any

import pytest

from scheduler.config import EngineConfig
from scheduler.llama.load import load


@pytest.mark.parametrize(
    ("config", "layout", "reason"),
    [
        ({}, "lanes", "a context for each sequence"),
        ({"flash_attn": "off"}, "lanes", "a context for each sequence"),
        ({"max_seqs": 1}, "pool", "could not be kept"),
        ({"kv_layout": "pool"}, "pool", "as asked"),
    ],
)
def test_an_engine_says_why_its_memory_is_laid_out_so(
    model_path: str, config: dict[str, Any], layout: str, reason: str
) -> None:
    info = load(EngineConfig(model_path, **{"ctx_len": 256, "max_seqs": 2, "threads": 1, **config})).info
    assert info.kv_layout == layout
    assert reason in info.kv_layout_reason
