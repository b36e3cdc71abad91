"""What an engine is started with, and what it made of it."""

from dataclasses import dataclass

KV_TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FLASH_ATTN = ("auto", "on", "off")
KV_LAYOUTS = ("auto", "pool", "lanes")
POOLINGS = ("auto", "none", "mean", "cls", "last")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's options. None means: choose from the model and the machine."""

    model_path: str
    ctx_len: int | None = None
    """Tokens of one request, prompt and answer together."""
    max_seqs: int | None = None
    """Sequences that run at once."""
    kv_tokens: int | None = None
    """Tokens of KV memory, for all sequences together."""
    batch_tokens: int | None = None
    """Token budget of a step."""
    itl_target: float | None = None
    """Seconds that running streams may have to wait for their next token while prompts are read."""
    threads: int | None = None
    gpu_layers: int = -1
    """Layers on the GPU where llama.cpp has one; -1 is all."""
    kv_type: str = "f16"
    flash_attn: str = "auto"
    kv_layout: str = "auto"
    """Cells for all sequences together (pool), or for each of its own (lanes)."""
    host_cache: int | None = None
    """Bytes of host memory for pages that were evicted from the KV memory."""
    disk_cache: int | None = None
    """Bytes on the disk for pages that were evicted from host memory; kept for the next engine."""
    disk_folder: str = ""
    """Where; nothing is kept on the disk without it."""
    tuning_folder: str = ""
    """Where what was found to be fastest is kept; see scheduler.llama.tuning."""
    others_bytes: int = 0
    """Memory of other models' weights, which the system counts as available as it could read them from disk again."""
    backend_top_k: int = 0
    """How many of the best tokens the backend itself finds in each step, so that no logits leave the GPU; 0 is off."""
    pooling: str = "auto"
    """How the embedding of a text is made from those of its tokens; auto: as the file says, none: not at all."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine serves: every choice made."""

    pid: int
    description: str
    """llama.cpp's words for the model, such as `llama 135M Q4_1`."""
    ctx_len: int
    max_seqs: int
    kv_tokens: int
    kv_bytes: int
    kv_layout: str
    """pool or lanes."""
    kv_layout_reason: str
    """Why, in words."""
    batch_tokens: int
    threads: int
    host_cache: int
    """Bytes that evicted pages may take; 0 if they cannot be kept."""
    disk_cache: int
    gpu_layers: int
    """Layers that really lie on a GPU; 0 without one."""
    load_seconds: float
    generates: bool = True
    """Whether it writes text; encoders only read."""
    pooling: str = "none"
    """How the embeddings of texts are made: mean, cls or last; none if they are not."""
    embedding_size: int = 0
    """Components of an embedding."""
    max_text_tokens: int = 0
    """Of a text that is made an embedding of, special tokens included."""
