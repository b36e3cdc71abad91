"""GET /api/tags, /api/ps and /api/version, POST /api/show: describes models in Ollama's format."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import trio

from api.errors import ApiError
from api.models import gguf
from api.models.defaults import NOTHING
from api.models.variants import parts
from api.protocols.call import Call
from api.protocols.ollama.answer import written_time
from api.protocols.ollama.errors import not_found
from api.protocols.ollama.request import OllamaShowRequest
from api.serving.model import ModelRuntime
from api.serving.service import ModelService
from api.text.dialects import dialect_of
from api.text.template import CHATML, NO_VOCABULARY, ChatTemplate
from api.text.tokenizer import ModelError

API_VERSION: Final = "0.12.11"
"""The version of Ollama whose API this package follows. Clients compare it with the one that they need."""
NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
_FILE_TYPES: Final = (
    (0, "F32 F16 Q4_0 Q4_1"),
    (7, "Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS"),
    (23, "IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16"),
    (36, "TQ1_0 TQ2_0 MXFP4_MOE"),
)
QUANTIZATIONS: Final = {first + place: name for first, names in _FILE_TYPES for place, name in enumerate(names.split())}
"""llama.cpp's names of `general.file_type`."""
_UNKNOWN: Final = "unknown"


async def tags(call: Call[None]) -> dict[str, Any]:
    """The models of the server, each of their names as one."""
    return {"models": await trio.to_thread.run_sync(_listed, call.server.fleet.models)}


async def ps(call: Call[None]) -> dict[str, Any]:
    """The models that are in memory."""
    fleet = call.server.fleet
    loaded = [model for model in fleet.models if model.service is not None and model.service.engine.info is not None]
    files = await trio.to_thread.run_sync(_listed, loaded)
    of_name = {name: model for model in loaded for name in model.names}
    return {"models": [_in_memory(file, of_name[file["name"]], fleet.idle_limit) for file in files]}


async def show(call: Call[OllamaShowRequest]) -> dict[str, Any]:
    """What a model's files say, and what the model can do. Does not load it. Raises ApiError 404 if there is none."""
    name = call.request.wanted
    try:
        model = call.server.fleet.model(name)
    except ApiError as error:
        raise not_found(name, error) from error
    return await trio.to_thread.run_sync(_described, model, model.service)


async def version(call: Call[None]) -> dict[str, Any]:  # noqa: ARG001 - it is the same for all calls
    return {"version": API_VERSION}


def _listed(models: list[ModelRuntime]) -> list[dict[str, Any]]:
    return [_entry(model, name) for model in models for name in model.names]


def _entry(model: ModelRuntime, name: str) -> dict[str, Any]:
    size, modified = _files(model.options.path)
    identity = f"{model.options.path.name}:{size}:{modified}"
    return {
        "name": name,
        "model": name,
        "modified_at": written_time(datetime.fromtimestamp(modified, UTC)),
        "size": size,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": _details(_values(model.options.path)),
    }


def _in_memory(entry: dict[str, Any], model: ModelRuntime, idle_limit: float) -> dict[str, Any]:
    info = model.service.engine.info if model.service is not None else None
    size = model.weight_bytes + (info.kv_bytes if info is not None else 0)
    expires = NEVER
    if idle_limit:
        expires = datetime.now(UTC) + timedelta(seconds=model.last_used + idle_limit - trio.current_time())
    described = {name: value for name, value in entry.items() if name != "modified_at"}
    return described | {
        "size": size,
        "expires_at": written_time(expires),
        "size_vram": size if info is not None and info.gpu_layers else 0,
        "context_length": model.context_length or 0,
    }


def _described(model: ModelRuntime, service: ModelService | None) -> dict[str, Any]:
    path, defaults = model.options.path, model.options.defaults or NOTHING
    values = _values(path)
    in_file = values.by_key.get("tokenizer.chat_template")
    template = defaults.template or (in_file if isinstance(in_file, str) else CHATML)
    capabilities = list(_capabilities(values, template, service))
    settings = [f"{name} {value}" for name, value in defaults.sampling().items()]
    settings += [f"stop {stop!r}" for stop in defaults.stop or ()]
    _, modified = _files(path)
    return {
        "modelfile": f"FROM {model.names[0]}\n",
        "parameters": "\n".join(settings),
        "template": template,
        "details": _details(values),
        "model_info": {name: value for name, value in values.by_key.items() if name != "tokenizer.chat_template"}
        | {"general.parameter_count": values.num_parameters},
        "capabilities": capabilities,
        "modified_at": written_time(datetime.fromtimestamp(modified, UTC)),
    }


def _capabilities(values: gguf.Values, template: str, service: ModelService | None) -> Iterator[str]:
    """What the model can do: as it was loaded, else as its file says."""
    info = service.engine.info if service is not None else None
    pooling = _text(values, f"{_text(values, 'general.architecture')}.pooling_type")
    ranks = info.pooling == "rank" if info is not None else pooling == "4"
    embeds = not ranks and (info.pooling != "none" if info is not None else pooling not in ("", "0"))
    if info.generates if info is not None else not (ranks or embeds):
        yield "completion"
        yield "tools"  # for every template: the prompt explains calls if the template does not
        if _thinks(template):
            yield "thinking"
        if service is not None and service.tokenizer.fill_in_the_middle([], []) is not None:
            yield "insert"
    if embeds:
        yield "embedding"
    if ranks:
        yield "rerank"


@lru_cache(maxsize=64)
def _thinks(template: str) -> bool:
    """Whether the template shows reasoning. It takes up to 0.1 s."""
    try:
        return dialect_of(ChatTemplate(template, NO_VOCABULARY)).thinks
    except ModelError:  # of a model that cannot be loaded
        return False


def _details(values: gguf.Values) -> dict[str, Any]:
    family = _text(values, "general.architecture")
    kind = values.by_key.get("general.file_type")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": _text(values, "general.size_label") or _short(values.num_parameters),
        "quantization_level": QUANTIZATIONS.get(kind, _UNKNOWN) if isinstance(kind, int) else _UNKNOWN,
    }


def _text(values: gguf.Values, key: str) -> str:
    return str(values.by_key.get(key, ""))


def _short(number: int) -> str:
    """A number of parameters such as 134.5M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def _files(path: Path) -> tuple[int, float]:
    """The bytes of all files of a model, and when the first was changed. Both are 0 if the files have gone."""
    try:
        sizes = [path.with_name(part).stat().st_size for part in parts(path.name)]
        return sum(sizes), path.stat().st_mtime
    except OSError:
        return 0, 0.0


def _values(path: Path) -> gguf.Values:
    """The values in a model's file; none if it has gone."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (gguf.GgufError, OSError):
        return gguf.Values({}, 0)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> gguf.Values:  # noqa: ARG001 - a changed file is read again
    return gguf.values(path)
