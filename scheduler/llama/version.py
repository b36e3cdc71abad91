"""Version digests for saved pages, tuning results and proofs, so that they are used only where they are valid."""

import os
import platform
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import psutil

from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.llama.model import LIBRARY, LLAMA_CPP_VERSION, Model, build_info
from scheduler.machine import processor

SAMPLED_BYTES: Final = 1 << 20
NUM_SAMPLES: Final = 16


def version_of(config: EngineConfig, model: Model, *, is_stretched: bool = False) -> str:
    """Returns the version of saved pages: a digest of the model file with its date, the settings that change KV,
    whether the weights are repacked, and llama.cpp.

    `is_stretched`: see `Context`.
    """
    path = Path(config.model_path)
    file = path.stat()
    marks = [*(["stretched"] * is_stretched), *(["repacked"] * model.is_repacked)]
    rotation = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "")  # llama.cpp rotates KV of some number formats
    facts = (model.vocab_size, PAGE_TOKENS, LLAMA_CPP_VERSION, config.kv_type, config.flash_attn, rotation, *marks)
    digest = blake2b(repr((file.st_mtime_ns, *facts)).encode(), digest_size=16)
    digest.update(_file_digest(path, file.st_size, file.st_mtime_ns))
    return digest.hexdigest()


@cache
def _file_digest(path: Path, size: int, _mtime: int) -> bytes:
    """Returns a digest of samples, because reading a large file would take too long. 16 MiB take 20 ms."""
    digest = blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for index in range(NUM_SAMPLES):
            file.seek(index * max(0, size - SAMPLED_BYTES) // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.digest()


def place_of(config: EngineConfig, model: Model) -> str:
    """Returns the version of a tuning result: the version of pages, the layers on a GPU, and the machine."""
    digest = blake2b(version_of(config, model).encode(), digest_size=16)
    digest.update(repr((config.gpu_layers, machine())).encode())
    return digest.hexdigest()


def proof_version(config: EngineConfig, *, repacked: bool) -> str:
    """Returns the version of a proof: a digest of everything that its result may depend on.

    That is the model file with its date, the settings that change KV, llama.cpp's libraries and variables, the machine,
    and the modules beside this one.
    """
    path = Path(config.model_path)
    file = path.stat()
    variables = sorted(item for item in os.environ.items() if item[0].startswith(("GGML_", "LLAMA_")))
    facts = (file.st_mtime_ns, config.kv_type, config.flash_attn, repacked, variables, _llama_cpp(), machine())
    digest = blake2b(repr(facts).encode(), digest_size=16)
    digest.update(_file_digest(path, file.st_size, file.st_mtime_ns))
    return digest.hexdigest()


@cache
def _llama_cpp() -> tuple[str, list[tuple[str, int, int]]]:
    """Returns the features of llama.cpp, and the names, sizes and dates of its libraries."""
    libraries = [(path.name, path.stat()) for path in sorted(Path(LIBRARY._name).parent.glob("lib*"))]
    return build_info(), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in libraries]


@cache
def modules() -> str:
    """Returns a digest of the modules beside this one: those that prove, and those that compute what is proven."""
    digest = blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def machine() -> tuple[str, str, int | None, int | None]:
    """Returns the machine's architecture, its processor, and its numbers of cores and hardware threads."""
    return platform.machine(), processor(), psutil.cpu_count(logical=False), os.cpu_count()
