"""The options that an engine is started with, and the settings that it reports when it is ready."""

from dataclasses import dataclass
from typing import Literal

KV_TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FLASH_ATTN = ("auto", "on", "off")
KV_LAYOUTS = ("auto", "pool", "lanes")
DRAFTS = ("auto", "on", "off")
REPACKS = ("auto", "on", "off")
POOLINGS = ("auto", "none", "mean", "cls", "last")

TierKind = Literal["pages", "sequences", "none"]
"""What the tiers move: pages that sequences have in common, whole sequences, or nothing."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's options. For None, the engine uses a value that suits the model and the machine."""

    model_path: str
    ctx_len: int | None = None
    """Maximum tokens of one request: prompt plus answer."""
    max_seqs: int | None = None
    """Maximum number of sequences that run at once."""
    kv_tokens: int | None = None
    """Fixed size of the KV memory in tokens, for all sequences together."""
    kv_start: int | None = None
    """Size of the KV memory at the start. Later it follows the load."""
    kv_max: int | None = None
    """Size of the KV memory at most."""
    batch_tokens: int | None = None
    """Token budget of a step."""
    itl_target: float | None = None
    """ITL target in seconds: how long running streams may wait for their next token while prompts are computed."""
    stream_interval: float = 0.05
    """Seconds between two outputs of a request, if its tokens come faster. 0 sends each token at once."""
    threads: int | None = None
    gpu_layers: int = -1
    """Layers on the GPU, if llama.cpp has one; -1 is all."""
    repack: str = "auto"
    """on: Q4_1 weights on a CPU are rewritten in memory while they are loaded; see scheduler.llama.repack. off: weights
    stay as they are. auto: on, if they are large enough for the number of threads."""
    kv_type: str = "f16"
    flash_attn: str = "auto"
    kv_layout: str = "auto"
    """pool: all sequences share the cells; lanes: each sequence has its own cells."""
    host_cache: int | None = None
    """Size of the host tier in bytes, for pages that are evicted from the KV memory."""
    disk_cache: int | None = None
    """Size of the disk tier in bytes, for pages that are evicted from the host tier. They survive a restart."""
    disk_folder: str = ""
    """Folder of the disk tier. Without it there is no disk tier."""
    tuning_folder: str = ""
    """Folder of the saved tuning results; see scheduler.llama.tuning."""
    proven_folder: str = ""
    """Folder of the results of proofs; see scheduler.llama.proven. Without it each start proves everything."""
    others_bytes: int = 0
    """Bytes of other models' weights. The system counts them as available, because it can read them again from disk."""
    backend_top_k: int = 0
    """Number of best tokens that the backend finds in each step, so that no logits leave the GPU. 0 is off."""
    draft: str = "auto"
    """on: steps verify drafted tokens where that is faster. off: there are no drafts. auto: on, except on a GPU without
    a draft model."""
    draft_model: str = ""
    """Path of a model file with the same vocabulary that drafts tokens. Empty for none."""
    kv_events: str = ""
    """ZMQ endpoint that publishes which pages the KV cache has. Empty for none."""
    kv_events_replay: str = ""
    """ZMQ endpoint that sends past events again. Empty for none."""
    kv_events_topic: str = ""
    log_format: str = "text"
    """text or json; see scheduler.logs."""
    pooling: str = "auto"
    """How token embeddings are pooled to a text's embedding. auto: as in the model file. none: no embeddings."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The settings of a loaded engine, with no option left open."""

    pid: int
    description: str
    """llama.cpp's description of the model, such as `llama 135M Q4_1`."""
    ctx_len: int
    max_seqs: int
    kv_tokens: int
    kv_bytes: int
    kv_layout: str
    """pool or lanes."""
    kv_layout_reason: str
    """The reason for the layout, for the log."""
    batch_tokens: int
    threads: int
    host_cache: int
    """Size of the host tier in bytes; 0 if evicted pages cannot be kept."""
    disk_cache: int
    """Size of the disk tier in bytes; 0 if there is none."""
    gpu_layers: int
    """Layers that are on a GPU; 0 without one."""
    load_seconds: float
    kv_max: int = 0
    """Tokens of the KV memory at most. `kv_tokens` and `kv_bytes` are those of the start."""
    tier: TierKind = "none"
    generates: bool = True
    """Whether the model generates text. Encoders only make embeddings, rerankers only rank documents."""
    mapped_bytes: int | None = None
    """Bytes of weights that the system counts as available memory, those of the draft model included. None is all."""
    draft_model: str = ""
    """llama.cpp's description of the model that drafts tokens. Empty for none."""
    pooling: str = "none"
    """Pooling of embeddings: mean, cls or last; none if the model makes no embeddings; rank if it ranks documents."""
    embedding_size: int = 0
    """Number of components of an embedding, or of a document that the model ranks."""
    max_text_tokens: int = 0
    """Maximum tokens of a text to embed, special tokens included."""
