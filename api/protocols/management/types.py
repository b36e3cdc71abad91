"""The wire types of models and of the server's health."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.types import Answer
from api.text.template import TemplateOrigin

ModelStatus = Literal["ready", "loading", "stopping", "unloaded", "failed"]
ServerStatus = Literal["ok", "loading", "draining", "failed"]


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: ModelStatus
    """The next request loads an unloaded model again. The engine of a failed model is restarted repeatedly."""
    context_length: int | None
    """Maximum number of tokens of prompt and answer together, or of a text to embed; null while it is not loaded."""
    max_model_len: int | None
    """The same, with vLLM's name."""
    chat_template: TemplateOrigin | None
    """Where its chat template comes from: its file, its `model.yaml`, or ChatML because there is none; null while it is
    not loaded."""
    answer_syntax: str | None
    """How it writes tool calls and thoughts, as its chat template shows; null while it is not loaded."""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class Readiness(Answer):
    status: ServerStatus


class KvMemory(Answer):
    tokens: int
    bytes: int
    held_tokens: int
    cached_tokens: int
    free_tokens: int
    layout: Literal["pool", "lanes"]
    tier: Literal["pages", "sequences", "none"]
    """What the host tier and the disk tier keep: pages, which prompts can share, or whole sequences, or nothing."""


class ModelHealth(Answer):
    model: str
    aliases: list[str]
    path: str | None
    """Path of its file; null for clients on other machines."""
    status: ModelStatus
    engine_pid: int | None
    context_length: int | None
    kv: KvMemory | None
    running: int
    waiting: int
    statistics: Annotated[dict[str, Any] | None, Field(description="Counters of the scheduler and of the cache.")]
    statistics_age: float | None
    """Seconds since the engine reported these numbers. It reports between two steps."""


class Health(Answer):
    status: ServerStatus
    reason: str | None = None
    """Why a model failed."""
    models: list[ModelHealth]
    pid: int
    uptime_seconds: float
    version: str
