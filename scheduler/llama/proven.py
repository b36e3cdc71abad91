"""Remembers what was proven about a model on this machine, so that its next start need not prove it again."""

import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from scheduler.config import EngineConfig
from scheduler.llama.model import num_gpu_layers
from scheduler.llama.version import modules, proof_version

_log = logging.getLogger("cortex.engine")


class Proven:
    """The results of a model's proofs, in small files.

    They hold until something changes that they may depend on; see `proof_version`. Nothing is remembered about models
    on a GPU: its driver may change, and proofs take little time there.
    """

    def __init__(self, config: EngineConfig, *, repacked: bool) -> None:
        """`repacked`: whether the weights are rewritten; see `scheduler.llama.repack`."""
        self._folder: Path | None = None
        self._version = ""
        if not config.proven_folder or num_gpu_layers(config.gpu_layers, 1):
            return
        try:
            self._version = f"{modules()}-{proof_version(config, repacked=repacked)}"
        except OSError as error:  # the model's file is gone
            _log.debug("no proof is remembered: %s", error)
        else:
            self._folder = Path(config.proven_folder)

    def load(self, proof: str) -> Any:
        """Returns the saved result of a proof; None if there is none that can be read."""
        if self._folder is None:
            return None
        with suppress(OSError, orjson.JSONDecodeError):
            return orjson.loads((self._folder / self._name(proof)).read_bytes())

    def save(self, proof: str, result: Any) -> None:
        """Save a result, and remove those of other versions of Cortex. It is proven again if that fails."""
        folder = self._folder
        if folder is None:
            return
        unfinished = folder / f"{self._name(proof)}.{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if not path.name.startswith(f"{modules()}-"):
                    path.unlink(missing_ok=True)
            try:
                unfinished.write_bytes(orjson.dumps(result))
                unfinished.replace(folder / self._name(proof))
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
        except OSError as error:
            _log.debug("a proof is not remembered: %s", error)

    def _name(self, proof: str) -> str:
        return f"{self._version}-{proof}.json"
