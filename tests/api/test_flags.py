"""The table of flags, and the options made from it."""

from dataclasses import fields
from pathlib import Path

import pytest

from api.command.docs import RUNNING
from api.flags import MODEL_ROWS, ROWS, SERVER_ROWS, ServerFlags, ServerSettings
from api.models.files import ModelFilesError
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


def test_a_draft_model_is_a_model_like_any_other(model_path: str, tmp_path: Path) -> None:
    path = Path("/m.gguf")
    server = ServerFlags(draft_model="smollm2:135m", threads=2).options("m", path)
    assert server.first.engine.draft_model == model_path
    assert server.first.difference(ServerFlags(draft_model=model_path).model_options("m", path)) == ""
    other = ServerFlags(draft_model="").model_options("m", path)
    assert (other.engine.draft_model, server.first.difference(other)) == ("", "its --draft-model differs")
    later = ServerFlags().model_options("n", path, server.model_flags)
    assert (later.engine.draft_model, later.engine.threads) == ("", 2), "it belongs to one model"
    (tmp_path / "text.gguf").write_text("no model")
    for name, reason in (
        (str(tmp_path / "missing.gguf"), "there is no file"),
        (str(tmp_path / "text.gguf"), "is not a GGUF file"),
        ("owner/repo", "'cortex pull owner/repo' downloads it"),
        ("what?", "is not a model"),
    ):
        with pytest.raises(ModelFilesError, match=f"^--draft-model: .*{reason}"):
            ServerFlags(draft_model=name).model_options("m", path)


def test_a_running_server_gets_the_absolute_path_of_a_draft_model(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draft").symlink_to(model_path)
    monkeypatch.chdir(tmp_path)
    sent = {
        name: ServerFlags(draft_model=name).start_request("m", Path("/m.gguf"))["draft_model"]
        for name in ("draft", "./missing.gguf", "smollm2:135m", "")
    }
    assert sent == {
        "draft": str(tmp_path / "draft"),
        "./missing.gguf": str(tmp_path / "missing.gguf"),
        "smollm2:135m": "smollm2:135m",
        "": "",
    }


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


@pytest.mark.parametrize(
    "text", ["", "5557", "tcp://", "tcp://*", "tcp://*:65536", "tcp://a b:1", "ipc:///tmp/x", "udp://*:1"]
)
def test_an_endpoint_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an endpoint such as tcp://127\.0\.0\.1:5557"):
        ROWS["kv_events"].check_text(text)


def test_endpoints_belong_to_one_model() -> None:
    server = ServerFlags(kv_events="tcp://127.0.0.1:5557", kv_events_topic="kv").options("m", Path("/m.gguf"))
    assert (server.first.engine.kv_events, server.first.engine.kv_events_topic) == ("tcp://127.0.0.1:5557", "kv")
    assert server.model_flags == {}
