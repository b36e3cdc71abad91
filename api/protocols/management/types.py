"""The wire types of models and of the server's health."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.types import Answer

ModelStatus = Literal["ready", "loading", "stopping", "unloaded", "failed"]


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: ModelStatus
    """The next request loads an unloaded model again. The engine of a failed model is restarted repeatedly."""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class KvMemory(Answer):
    tokens: int
    bytes: int
    held_tokens: int
    cached_tokens: int
    free_tokens: int


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


class Health(Answer):
    status: Literal["ok", "loading", "draining", "failed"]
    reason: str | None = None
    """Why a model failed."""
    models: list[ModelHealth]
    pid: int
    uptime_seconds: float
    version: str
