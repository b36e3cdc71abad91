"""Opens a model: with its weights as the file has them, or repacked where that is faster and proves to be right."""

import logging
import time
from pathlib import Path
from typing import Final

import numpy as np

from scheduler.config import EngineConfig
from scheduler.llama.context import Context
from scheduler.llama.model import Model, computes_groups, num_gpu_layers
from scheduler.llama.proof import without_errors
from scheduler.llama.repack import repackable_bytes, repacking
from scheduler.llama.trial import Part, Row, TrialError, compute
from scheduler.machine import cores
from scheduler.sizing import available_bytes

_log = logging.getLogger("cortex.engine")

PROBE_TOKENS: Final = 16
MAX_ERROR: Final = 0.2
"""Distance of the logits of repacked weights from those of the file, relative to the distance between the logits of two
tokens. It is 0.07 for the embedded model, and at least 0.67 if one kind of weights or one layer lacks its adapter."""
LAYER_BYTES: Final = 1 << 20
"""Bytes of a layer's weights for each thread. With less, a single stream would be slower: the adapter adds 26 points to
a layer at which all threads wait for each other. Two threads and the embedded model, which has 1.06 times as many, gain
7% of a step of one token."""
MEMORY_SHARE: Final = 2.5
"""While weights are repacked, they are in memory twice."""


def open_model(config: EngineConfig) -> Model:
    """Loads the configured model. Raises ModelError with one line for the user if that fails."""
    path, layers = config.model_path, config.gpu_layers
    if config.repack == "off" or num_gpu_layers(layers, 1) or not computes_groups():
        return Model(path, layers)
    started = time.monotonic()
    model = Model(path, layers)
    try:
        with without_errors():  # llama.cpp also warns that the matrices of an adapter are not repacked themselves
            repacked = _repacked(config, model)
    except Exception as error:  # whatever it is, the model can be served without
        _log.info("the weights are not repacked: %s", error)
        return model
    if repacked is None:
        return model
    model.close()
    _log.info("weights repacked in %.1f s", time.monotonic() - started)
    return repacked


def _repacked(config: EngineConfig, model: Model) -> Model | None:
    """Returns None if there is nothing to repack. Raises TrialError if the result is wrong."""
    path, threads = Path(config.model_path), config.threads or cores()
    if repackable_bytes(path) < (1 if config.repack == "on" else LAYER_BYTES * model.num_layers * threads):
        return None
    if available_bytes(config) < MEMORY_SHARE * model.num_bytes:
        raise MemoryError("the memory does not suffice for two copies")
    with repacking(path) as files:
        repacked = Model(config.model_path, config.gpu_layers, files)
    try:
        expected, other = _logits(config, model)
        row, _ = _logits(config, repacked)
    except BaseException:
        repacked.close()
        raise
    if not np.linalg.norm(row - expected) <= MAX_ERROR * np.linalg.norm(other - expected):  # or NaN
        repacked.close()
        raise TrialError("the logits would not be those of the file")
    return repacked


def _logits(config: EngineConfig, model: Model) -> tuple[Row, Row]:
    """Returns the logits after two tokens of a text, the latter one first, less their means."""
    context = Context(
        model,
        config,
        kv_tokens=PROBE_TOKENS,
        num_ids=1,
        num_outputs=1,
        batch_tokens=PROBE_TOKENS,
        threads=config.threads or cores(),
    )
    try:
        step = model.vocab_size // (PROBE_TOKENS + 1)
        tokens = [model.bos_token or 0, *(step * index for index in range(1, PROBE_TOKENS))]
        (other,) = compute(context, Part(0, tokens[: PROBE_TOKENS // 2], 0))
        (row,) = compute(context, Part(0, tokens[PROBE_TOKENS // 2 :], PROBE_TOKENS // 2))
        return row - row.mean(), other - other.mean()
    finally:
        context.close()
