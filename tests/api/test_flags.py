"""The table of flags, and the options made from it."""

from dataclasses import fields
from pathlib import Path

import pytest

from api.command.docs import RUNNING
from api.flags import MODEL_ROWS, ROWS, SERVER_ROWS, ServerFlags, ServerSettings
from scheduler.config import EngineConfig


def test_every_flag_becomes_an_option() -> None:
    engine = {item.name for item in fields(EngineConfig)}
    assert set(MODEL_ROWS) - engine == {"alias"}
    settings = {item.name for item in fields(ServerSettings)}
    assert {row.becomes for row in SERVER_ROWS.values()} - settings == {"on_demand"}


def test_unset_flags_have_the_options_defaults() -> None:
    options = ServerFlags().options("m", Path("/m.gguf"))
    defaults = {item.name: item.default for item in fields(EngineConfig)}
    for name in MODEL_ROWS.keys() - {"alias"}:
        assert getattr(options.first.engine, name) == defaults[name], name
    assert (options.first.given, options.loads_on_demand) == ({}, False)
    for item in fields(ServerSettings):
        assert getattr(options, item.name) == item.default


def test_the_docs_have_every_flag() -> None:
    text = RUNNING.read_text()
    for row in ROWS.values():
        assert f"| `{row.option}`" in text


@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        ({}, ""),
        ({"kv_type": "f16", "ctx_len": 128, "gpu_layers": -1}, ""),
        ({"kv_type": "q8_0"}, "its --kv-type differs"),
        ({"ctx_len": 8192}, "its --ctx-len differs"),
    ],
)
def test_a_running_model_differs_only_in_set_flags(wanted: dict[str, object], difference: str) -> None:
    path = Path("/m.gguf")
    runs = ServerFlags(ctx_len=128, threads=2).model_options("m", path)
    flags: dict[str, object] = dict(wanted)
    assert runs.difference(ServerFlags(**flags).model_options("m", path)) == difference  # type: ignore[arg-type]
