"""A loaded engine reports the layout of its memory and the reason."""

from typing import Any

import pytest

from scheduler.config import EngineConfig
from scheduler.llama.load import load


@pytest.mark.parametrize(
    ("config", "layout", "reason"),
    [
        ({}, "lanes", "lanes need 2"),
        ({"flash_attn": "off"}, "lanes", "lanes need 2"),
        ({"max_seqs": 1}, "lanes", "lanes need 1"),
        ({"kv_layout": "pool"}, "pool", "as configured"),
        ({"kv_layout": "pool", "batch_tokens": 64}, "pool", "as configured"),  # fewer tokens than sequence ids
    ],
)
def test_the_engine_reports_its_layout_and_the_reason(
    model_path: str, config: dict[str, Any], layout: str, reason: str
) -> None:
    info = load(EngineConfig(model_path, **{"ctx_len": 256, "max_seqs": 2, "threads": 1, **config})).info
    assert info.kv_layout == layout
    assert reason in info.kv_layout_reason
