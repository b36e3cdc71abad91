"""GET /api/tags, /api/ps and /api/version, POST /api/show: what a model's file says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import orjson
import pytest
from pydantic import BaseModel

from api.flags import ModelOptions
from api.models.defaults import ModelDefaults
from api.protocols.ollama.models import API_VERSION, QUANTIZATIONS
from api.protocols.ollama.types import OllamaLoadedModels, OllamaModelInfo, OllamaModels, OllamaVersion
from api.serving.fleet import Fleet
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from tests.api.answer_shapes import SHAPES
from tests.api.fakes import INFO, MODEL, Server
from tests.models import write_bert


def test_quantizations_have_llama_cpps_names() -> None:
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert {kind: names[kind] for kind in QUANTIZATIONS if kind in names} == {
        kind: name for kind, name in QUANTIZATIONS.items() if kind in names
    }


async def get(server: Server, path: str, kind: type[BaseModel], **body: Any) -> dict[str, Any]:
    client = server.client
    response = await (client.post(path, json=body) if body else client.get(path))
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    kind.model_validate_json(data)
    found: dict[str, Any] = orjson.loads(data)
    return found


def served(tokenizer: Tokenizer, path: Path, defaults: ModelDefaults | None = None, idle_limit: float = 0.0) -> Server:
    """A server with the model of this file, over a fake engine."""
    server = Server(tokenizer, defaults=defaults)
    fleet = Fleet(max_waiting=1, idle_limit=idle_limit)
    fleet.adopt(ModelOptions(MODEL, path, EngineConfig(str(path)), ("an-alias",), defaults), server.service)
    for name in ("_models", "_memory"):
        setattr(server.fleet, name, getattr(fleet, name))
    return server


@pytest.fixture
def file_size(model_path: str) -> int:
    return Path(model_path).stat().st_size


async def test_the_models_are_listed_under_each_of_their_names(
    tokenizer: Tokenizer, model_path: str, file_size: int
) -> None:
    server = served(tokenizer, Path(model_path))
    models = (await get(server, "/api/tags", OllamaModels))["models"]
    assert [model["name"] for model in models] == [MODEL, "an-alias"]
    assert models[0]["size"] == file_size
    assert len(models[0]["digest"]) == 64
    assert models[0]["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "135M",
        "quantization_level": "Q4_1",
    }


async def test_show_says_what_is_in_the_file(tokenizer: Tokenizer, model_path: str) -> None:
    defaults = ModelDefaults(temperature=0.5, stop=["END"])
    server = served(tokenizer, Path(model_path), defaults)
    shown = await get(server, "/api/show", OllamaModelInfo, model="an-alias", verbose=True)
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["parameters"] == "temperature 0.5\nstop 'END'"
    assert "<|im_start|>" in shown["template"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 8192
    assert shown["model_info"]["general.parameter_count"] == pytest.approx(135e6, rel=0.25)
    assert "tokenizer.chat_template" not in shown["model_info"]
    assert (await get(server, "/api/show", OllamaModelInfo, name=MODEL)) == shown


async def test_capabilities_are_those_of_the_loaded_model(tokenizer: Tokenizer, model_path: str) -> None:
    server = served(tokenizer, Path(model_path), ModelDefaults(chat_template=SHAPES["keys-and-values"].source))
    server.engine.info = replace(INFO, pooling="mean", embedding_size=4, max_text_tokens=8)
    shown = await get(server, "/api/show", OllamaModelInfo, model=MODEL)
    assert shown["capabilities"] == ["completion", "tools", "thinking", "embedding"]
    server.engine.info = replace(INFO, pooling="rank", generates=False)
    assert (await get(server, "/api/show", OllamaModelInfo, model=MODEL))["capabilities"] == ["rerank"]


@pytest.mark.parametrize(
    ("pooling", "capabilities"), [(gguf.PoolingType.CLS, ["embedding"]), (gguf.PoolingType.RANK, ["rerank"])]
)
async def test_the_file_says_what_a_model_can_do_that_is_not_loaded(
    tokenizer: Tokenizer, tmp_path: Path, pooling: gguf.PoolingType, capabilities: list[str]
) -> None:
    write_bert(tmp_path / "bert.gguf", pooling)
    server = served(tokenizer, tmp_path / "bert.gguf")
    server.engine.info = None
    shown = await get(server, "/api/show", OllamaModelInfo, model=MODEL)
    assert shown["capabilities"] == capabilities
    assert shown["details"]["family"] == "bert"
    assert shown["details"]["parameter_size"].endswith("K")
    assert (await get(server, "/api/ps", OllamaLoadedModels))["models"] == []


async def test_a_model_whose_file_has_gone_is_still_listed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    server = served(tokenizer, tmp_path / "gone.gguf")
    [model, _] = (await get(server, "/api/tags", OllamaModels))["models"]
    assert (model["size"], model["details"]["quantization_level"]) == (0, "unknown")


async def test_ps_lists_what_is_in_memory(tokenizer: Tokenizer, model_path: str) -> None:
    server = served(tokenizer, Path(model_path))
    [model, _] = (await get(server, "/api/ps", OllamaLoadedModels))["models"]
    assert (model["size"], model["size_vram"], model["context_length"]) == (INFO.kv_bytes, 0, INFO.ctx_len)
    assert model["expires_at"].startswith("9999-")
    leaving = served(tokenizer, Path(model_path), idle_limit=60.0)
    leaving.engine.info = replace(INFO, gpu_layers=3)
    [model, _] = (await get(leaving, "/api/ps", OllamaLoadedModels))["models"]
    assert not model["expires_at"].startswith("9999-")
    assert model["size_vram"] == model["size"]


async def test_the_version_is_that_of_ollamas_api(tokenizer: Tokenizer) -> None:
    assert await get(Server(tokenizer), "/api/version", OllamaVersion) == {"version": API_VERSION}
