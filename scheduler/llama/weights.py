"""Opens a model: with its weights as the file has them, or repacked where that is faster and proves to be right."""

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from scheduler.config import EngineConfig
from scheduler.llama.model import Model, computes_groups, num_gpu_layers
from scheduler.llama.proof import small_context, without_errors
from scheduler.llama.proven import Proven
from scheduler.llama.repack import repack, repackable
from scheduler.llama.trial import Part, Row, check_alike, compute
from scheduler.machine import cores
from scheduler.sizing import available_bytes

_log = logging.getLogger("cortex.engine")

PROBE_TOKENS: Final = 16
MAX_ERROR: Final = 0.3
"""The limit of `check_alike`. The error of the embedded model is 0.07, and at least 0.67 if one kind of weights or one
layer lacks its adapter."""
LAYER_BYTES: Final = 1 << 20
"""Bytes of a layer's weights for each thread. With less, a single stream would be slower: the adapter adds 26 points to
a layer at which all threads wait for each other. Two threads and the embedded model, which has 1.05 times as many, gain
7% of a step of one token."""
MIN_SHARE: Final = 0.5
"""Part of a file whose weights are repacked. In the embedded model, it is 0.67."""


def open_model(config: EngineConfig) -> Model:
    """Loads the configured model. Raises ModelError with one line for the user if that fails."""
    if config.repack != "off" and not num_gpu_layers(config.gpu_layers, 1) and computes_groups():
        started = time.monotonic()
        try:
            with without_errors():  # llama.cpp also warns that the matrices of an adapter are not repacked themselves
                repacked = _repacked(config, Path(config.model_path))
        except Exception as error:  # whatever it is, the model can be served without
            level = logging.WARNING if config.repack == "on" else logging.INFO
            _log.log(level, "the weights are not repacked: %s", error)
        else:
            if repacked is not None:
                _log.info("weights repacked in %.1f s", time.monotonic() - started)
                return repacked
    return Model(config.model_path, config.gpu_layers)


def _repacked(config: EngineConfig, path: Path) -> Model | None:
    """Returns None if repacking is not worthwhile. Raises TrialError if the result is wrong."""
    num_bytes, num_layers = repackable(path)
    file_bytes = path.stat().st_size
    if not num_bytes or (config.repack == "auto" and not _is_worthwhile(config, num_bytes, num_layers, file_bytes)):
        return None
    if available_bytes(config) < file_bytes:
        raise MemoryError("there is not enough memory")
    proven = Proven(config, repacked=True)
    if proven.load("repacked") is True:
        return Model(config.model_path, config.gpu_layers, repack(path))
    with closing(Model(config.model_path, config.gpu_layers)) as plain:  # before the other one: both might not fit
        other, expected = _logits(config, plain)
    repacked = Model(config.model_path, config.gpu_layers, repack(path))
    try:
        _, row = _logits(config, repacked)
        check_alike(row, expected, other, "the logits would not be those of the file", MAX_ERROR)
    except BaseException:
        repacked.close()
        raise
    proven.save("repacked", True)
    return repacked


def _is_worthwhile(config: EngineConfig, num_bytes: int, num_layers: int, file_bytes: int) -> bool:
    """Whether enough of the file's weights can be repacked. The others would be copied into memory with them."""
    is_most = num_bytes >= MIN_SHARE * file_bytes
    return is_most and num_bytes >= LAYER_BYTES * num_layers * (config.threads or cores())


def _logits(config: EngineConfig, model: Model) -> tuple[Row, Row]:
    """Returns the logits after the first half of a text and after the whole text."""
    step = model.vocab_size // (PROBE_TOKENS + 1)
    tokens = [model.bos_token or 0, *(step * index for index in range(1, PROBE_TOKENS))]
    half = PROBE_TOKENS // 2
    with small_context(model, config, lanes=False) as context:
        (first,) = compute(context, Part(0, tokens[:half], 0))
        (second,) = compute(context, Part(0, tokens[half:], half))
        return first, second
