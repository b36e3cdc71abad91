"""Computes embeddings with llama.cpp, in a context separate from the one that generates text."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.config import EngineConfig
from scheduler.llama.context import PROBE_TOKENS, Context
from scheduler.llama.model import Model
from scheduler.sizing import available_bytes
from scheduler.texts import Batch, Limits, Piece, Pooled, Text

_log = logging.getLogger("cortex.engine")

MAX_TEXTS: Final = 64
MAX_STATES: Final = 8
"""Maximum texts in a batch of a recurrent or hybrid model, which keeps a state per text."""
BATCH_TOKENS: Final = 512
MIN_BATCH_TOKENS: Final = 64
ROWS_SHARE: Final = 0.125
"""Share of the available memory for the outputs of a batch. llama.cpp reserves room for the logits of every token, even
though embeddings do not need them."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Properties of a model's attention."""

    is_causal: bool
    """Whether tokens attend to earlier tokens only, so that the model can generate, and texts can be cut."""
    keeps_kv: bool


def attention_of(model: Model, config: EngineConfig, pooling: str) -> Attention:
    """Opens a small context to find out: llama.cpp reports these properties for contexts only. Raises ModelError."""
    context = Context(
        model,
        config,
        kv_tokens=PROBE_TOKENS,
        num_ids=1,
        num_outputs=1,
        batch_tokens=PROBE_TOKENS,
        threads=1,
        pooling=pooling,
    )
    attention = Attention(context.is_causal, context.keeps_kv)
    context.close()
    return attention


def text_limits(config: EngineConfig, model: Model, attention: Attention, ctx_len: int) -> Limits:
    """Returns the limits of texts. A text has at most `ctx_len` tokens.

    If texts cannot be cut, the available memory is a limit too, unless the user set a context length.
    """
    row_bytes = 4 * (model.vocab_size + model.embedding_size)
    num_rows = int(ROWS_SHARE * available_bytes(config) / row_bytes)
    max_text_tokens = ctx_len
    if not attention.is_causal and config.ctx_len is None:
        max_text_tokens = min(ctx_len, max(num_rows, BATCH_TOKENS))
    return Limits(
        max_text_tokens=max_text_tokens,
        batch_tokens=min(BATCH_TOKENS, max(num_rows, MIN_BATCH_TOKENS)),
        max_texts=MAX_TEXTS if model.shares_prefixes else MAX_STATES,
        cuts=attention.is_causal,
    )


class LlamaReader:
    """A context with pooling. Implements scheduler.texts.Reader."""

    def __init__(self, model: Model, config: EngineConfig, limits: Limits, pooling: str, threads: int) -> None:
        """Opens a context for one long text and a batch. Raises ModelError if there is not enough memory."""
        batch_tokens = limits.batch_tokens if limits.cuts else max(limits.batch_tokens, limits.max_text_tokens)
        self.context = Context(
            model,
            dataclasses.replace(config, kv_type="f16"),  # a quantized type would save little here
            kv_tokens=limits.max_text_tokens + batch_tokens,
            num_ids=limits.max_texts,
            num_outputs=batch_tokens,
            batch_tokens=batch_tokens,
            threads=threads,
            unified=True,  # in lanes, llama.cpp computes wrong means for texts of different lengths
            pooling=pooling,
        )
        _log.info("embeddings of up to %d tokens each, pooled by %s", limits.max_text_tokens, pooling)

    def warm_up(self) -> float:
        """Returns the seconds per token. Runs two batches, because the first one also loads the weights."""
        text = Text(0, np.zeros(PROBE_TOKENS, np.int32), sequence_id=0)
        for _ in range(2):
            seconds = self.read(Batch([Piece(text, 0, PROBE_TOKENS)])).seconds
            self.forget(0)
        return seconds / PROBE_TOKENS

    def read(self, batch: Batch) -> Pooled:
        """Computes a batch. Raises StepError if it fails."""
        started = time.perf_counter()
        context, end = self.context, 0
        for piece in batch.pieces:
            start, end = end, end + piece.num_tokens
            context.tokens[start:end] = piece.tokens
            context.positions[start:end] = np.arange(piece.start, piece.start + piece.num_tokens)
            context.ids[start:end] = piece.text.sequence_id
        context.outputs[:end] = 1
        context.decode(end)
        embeddings = [context.embedding(piece.text.sequence_id).copy() for piece in batch.pieces]
        return Pooled(embeddings, time.perf_counter() - started)

    def forget(self, sequence_id: int) -> None:
        self.context.remove(sequence_id, 0, -1)
