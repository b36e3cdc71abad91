"""Remembers what was proven about a model on this machine, so that its next start need not prove it again."""

import logging
import os
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from scheduler.config import EngineConfig
from scheduler.llama.model import Model, num_gpu_layers
from scheduler.llama.version import place_of

_log = logging.getLogger("cortex.engine")


class Proven:
    """The results of a model's proofs, in small files.

    They hold until the model file, the settings of its KV, llama.cpp, the machine or the modules beside this one
    change. Nothing is remembered about models on a GPU: its driver may change, and proofs take little time there.
    """

    def __init__(self, config: EngineConfig, model: Model) -> None:
        self._path: Path | None = None
        if config.proven_folder and not num_gpu_layers(config.gpu_layers, model.num_layers):
            self._path = Path(config.proven_folder) / f"{place_of(config, model)}-{_modules()}"

    def load(self, proof: str) -> Any:
        """Returns the saved result of a proof; None if there is none that can be read."""
        if self._path is None:
            return None
        with suppress(OSError, orjson.JSONDecodeError):
            return orjson.loads(self._file(self._path, proof).read_bytes())

    def save(self, proof: str, result: Any) -> None:
        """Save a result. If that fails, the next start proves it again."""
        if self._path is None:
            return
        path = self._file(self._path, proof)
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(orjson.dumps(result))
            unfinished.replace(path)
        except OSError as error:
            _log.debug("a proof is not remembered: %s", error)

    @staticmethod
    def _file(path: Path, proof: str) -> Path:
        return path.with_name(f"{path.name}-{proof}.json")


@cache
def _modules() -> str:
    """Returns a digest of the modules that prove and that compute what is proven."""
    digest = blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
