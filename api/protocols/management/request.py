"""Starting and stopping models: a model's name, and the flags that are about one model."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from api.flags import MAX_NAME_LENGTH, ModelFlags, num_bytes
from api.protocols.fields import Strict
from scheduler.config import FLASH_ATTN, KV_LAYOUTS, KV_TYPES, POOLINGS


def _size(value: str) -> str:
    num_bytes(value)
    return value


Size = Annotated[str, AfterValidator(_size)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]


class StartRequest(Strict):
    """Null is the default, as without the flag."""

    model: Name
    path: Annotated[str, Field(min_length=1)] | None = None
    """The file, where the name alone does not say which."""
    alias: list[Name] | None = None
    ctx_len: Annotated[int, Field(ge=64)] | None = None
    max_seqs: Annotated[int, Field(ge=1, le=255)] | None = None
    kv_tokens: Annotated[int, Field(ge=64)] | None = None
    kv_layout: Literal[KV_LAYOUTS] | None = None  # type: ignore[valid-type]  # a tuple of names
    kv_type: Literal[KV_TYPES] | None = None  # type: ignore[valid-type]
    flash_attn: Literal[FLASH_ATTN] | None = None  # type: ignore[valid-type]
    batch_tokens: Annotated[int, Field(ge=32, le=8192)] | None = None
    itl_target: Annotated[float, Field(ge=0.001, le=3600)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpu_layers: Annotated[int, Field(ge=-1)] | None = None
    host_cache: Size | None = None
    disk_cache: Size | None = None
    backend_top_k: Annotated[int, Field(ge=0, le=1024)] | None = None
    pooling: Literal[POOLINGS] | None = None  # type: ignore[valid-type]

    def flags(self) -> ModelFlags:
        given = self.model_dump(exclude={"model", "path"}, exclude_none=True)
        return ModelFlags(**given)


class StopRequest(Strict):
    model: Name
