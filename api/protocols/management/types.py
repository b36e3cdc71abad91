"""The wire types of models and of the server's health."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.types import Answer
from api.serving.state import UnreadyReason
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


class Ready(Answer):
    ready: bool
    reason: UnreadyReason | None
    """Why a request to the first model would not be answered now."""


class Load(Answer):
    """The load of one model, with SMG's names."""

    model: str
    dp_rank: int
    """The number of the model on this server, from 0."""
    num_running_reqs: int
    num_waiting_reqs: int
    num_waiting_uncached_tokens: int
    """Prompt tokens of requests that wait for their first token; the cache may have some of them."""
    num_used_tokens: int
    """Tokens of KV memory that running sequences hold. Idle cached pages do not count."""
    max_total_num_tokens: int
    """Tokens of KV memory at its largest. It follows the load."""
    token_usage: float
    """`num_used_tokens` as a part of `max_total_num_tokens`, from 0 to 1."""
    gen_throughput: float
    """Always 0, so that routers count requests instead: a rate says how busy a node is, not how fast."""
    cache_hit_rate: float
    """The part of all prompt tokens that was found in the cache, since the server started."""


class Loads(Answer):
    loads: list[Load]


class KvMemory(Answer):
    tokens: int
    """The present size. It follows the load."""
    max_tokens: int
    bytes: int
    """Bytes of the present size."""
    grows: int
    shrinks: int
    move_seconds: float
    """Duration of the last change of the size, in which no step ran."""
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
    """Path of its file; null unless an administrator asks."""
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
    pid: int | None
    uptime_seconds: float
    version: str
