"""Names for what something kept depends on, so that it is not used where it does not hold."""

import os
import platform
from hashlib import blake2b
from pathlib import Path
from typing import Final

import psutil

from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.llama.context import LLAMA_CPP_VERSION, Model
from scheduler.machine import processor

SAMPLED_BYTES: Final = 1 << 20
NUM_SAMPLES: Final = 16


def version_of(config: EngineConfig, model: Model) -> str:
    """Of a page: the model file, the settings that change KV, and llama.cpp."""
    path = Path(config.model_path)
    size = path.stat().st_size
    digest = blake2b(repr((size, model.vocab_size, PAGE_TOKENS, LLAMA_CPP_VERSION)).encode(), digest_size=16)
    digest.update(repr([config.kv_type, config.flash_attn]).encode())
    with path.open("rb") as file:  # all of a large file would take too long
        for index in range(NUM_SAMPLES):
            file.seek(index * max(0, size - SAMPLED_BYTES) // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def place_of(config: EngineConfig, model: Model) -> str:
    """Of a speed: all that a page depends on, the layers on a GPU, and the machine."""
    digest = blake2b(version_of(config, model).encode(), digest_size=16)
    digest.update(repr((config.gpu_layers, machine())).encode())
    return digest.hexdigest()


def machine() -> tuple[str, str, int | None, int | None]:
    """Its kind, its processor, and how many cores and hardware threads that has."""
    return platform.machine(), processor(), psutil.cpu_count(logical=False), os.cpu_count()
