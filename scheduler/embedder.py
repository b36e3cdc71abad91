"""Embeddings of texts, beside the answers: how long a batch may take, and what its result means.

Between two steps of the answers there is one batch of texts at most, no longer than streams can wait.
"""

import base64
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.cost import StepCost
from scheduler.errors import ModelError
from scheduler.messages import Embed, Embedded
from scheduler.plan import StepError
from scheduler.text_queue import TextQueue
from scheduler.texts import Batch, Embedding, Limits, Pooled, Reader, Text

_log = logging.getLogger("cortex.engine")

SMALLEST_BATCH: Final = 32
"""Tokens that a batch may have however short the time is: below, most of it goes into reading the weights."""
MAX_FAILED_BATCHES: Final = 3
"""In a row, before the requests in them are given up."""


@dataclass(frozen=True, slots=True)
class EmbedderStatistics:
    """Counters since the start, but for `requests`, which have not ended."""

    requests: int
    texts: int
    tokens: int
    batches: int
    batch_seconds: float
    cancelled: int
    failed: int
    failed_batches: int


class Embedder:
    """Makes batches of what is in its queue, and embeddings of what they were pooled to."""

    def __init__(
        self, open_reader: Callable[[], Reader], limits: Limits, pooling: str, seconds_per_token: float
    ) -> None:
        """`open_reader` is called before the first batch, and may raise ModelError: nobody may ever want an embedding.

        `seconds_per_token` is a first guess.
        """
        self._open_reader = open_reader
        self._reader: Reader | None = None
        self._limits = limits
        self._pooling = pooling
        self._cost = StepCost(seconds_per_token)
        self._queue = TextQueue(limits)
        self._texts = 0
        self._tokens = 0
        self._batches = 0
        self._batch_seconds = 0.0
        self._cancelled = 0
        self._failed = 0
        self._failed_batches = 0
        self._failed_in_a_row = 0

    @property
    def has_work(self) -> bool:
        return bool(self._queue.requests)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, embed: Embed) -> Embedded | None:
        """Queue a request. Returns its only answer if it can never be served."""
        lengths = [len(tokens) for tokens in embed.texts]
        if not lengths or min(lengths) < 1 or max(lengths) > self._limits.max_text_tokens:
            limit = self._limits.max_text_tokens
            return Embedded(embed.request_id, error=f"texts must have 1 to {limit} tokens each")
        texts = [Text(embed.request_id, np.array(tokens, np.int32)) for tokens in embed.texts]
        self._queue.add(embed.request_id, texts)
        return None

    def cancel(self, request_id: int) -> None:
        """End a request at once; one that is unknown or has ended is left alone."""
        if request_id in self._queue.requests:
            self._end(request_id)
            self._cancelled += 1

    def _end(self, request_id: int) -> None:
        cut = self._queue.remove(request_id)
        if cut is not None:
            self._release(cut)

    def _release(self, text: Text) -> None:
        """What was computed of it, and its id."""
        if self._reader is not None:
            self._reader.forget(text.sequence_id)
        self._queue.return_id(text)

    # -- batches -----------------------------------------------------------------------------------------------------

    def step(self, seconds: float) -> list[Embedded]:
        """Compute a batch that takes about so long; infinity for no limit."""
        try:
            reader = self._reader = self._reader or self._open_reader()
        except ModelError as error:
            _log.error("no embeddings can be made: %s", error)
            return self._fail(list(self._queue.requests), str(error))
        batch = self.plan(self._budget(seconds))
        try:
            pooled = reader.read(batch)
        except StepError as error:
            _log.error("a batch of texts failed: %s; it was %s", error, batch)
            return self.rollback(batch)
        return self.commit(batch, pooled)

    def _budget(self, seconds: float) -> int:
        """Tokens that can be computed in so long."""
        if math.isinf(seconds):
            return self._limits.batch_tokens
        each = self._cost.token_seconds(self._queue.num_computed)
        fitting = int((seconds - self._cost.fixed_seconds) / each)
        return min(max(fitting, SMALLEST_BATCH), self._limits.batch_tokens)

    def plan(self, budget: int) -> Batch:
        """Choose what the next batch computes, of `budget` tokens at most where texts can be cut."""
        return self._queue.plan(budget)

    def commit(self, batch: Batch, pooled: Pooled) -> list[Embedded]:
        """Book what the batch computed, and return the embeddings that are whole."""
        self._batches += 1
        self._batch_seconds += pooled.seconds
        self._tokens += batch.num_tokens
        self._failed_in_a_row = 0
        if batch.num_tokens >= SMALLEST_BATCH:
            self._cost.observe(batch.num_tokens, batch.num_pairs, pooled.seconds)
        finished: dict[int, list[str]] = {}
        for piece, embedding in zip(batch.pieces, pooled.embeddings, strict=True):
            text = piece.text
            text.pool(embedding, piece.num_tokens, self._pooling)
            if piece.is_last:
                assert text.embedding is not None, "something of it was pooled"
                finished.setdefault(text.request_id, []).append(to_wire(text.embedding))
                self._release(text)
        for request_id, whole in finished.items():
            self._texts += len(whole)
            request = self._queue.requests[request_id]
            request.num_left -= len(whole)
            if not request.num_left:
                self._end(request_id)
        return [Embedded(request_id, whole) for request_id, whole in finished.items()]

    def rollback(self, batch: Batch) -> list[Embedded]:
        """Book a batch that failed: its texts begin anew. Tells the requests that are given up."""
        self._failed_batches += 1
        self._failed_in_a_row += 1
        for piece in reversed(batch.pieces):
            self._release(piece.text)
            self._queue.put_back(piece.text)
        if self._failed_in_a_row < MAX_FAILED_BATCHES:
            return []
        self._failed_in_a_row = 0
        return self._fail(list({piece.text.request_id: None for piece in batch.pieces}), "the model failed")

    def _fail(self, request_ids: list[int], reason: str) -> list[Embedded]:
        for request_id in request_ids:
            self._end(request_id)
        self._failed += len(request_ids)
        return [Embedded(request_id, error=reason) for request_id in request_ids]

    # -- what it looks like ------------------------------------------------------------------------------------------

    def statistics(self) -> EmbedderStatistics:
        return EmbedderStatistics(
            requests=len(self._queue.requests),
            texts=self._texts,
            tokens=self._tokens,
            batches=self._batches,
            batch_seconds=self._batch_seconds,
            cancelled=self._cancelled,
            failed=self._failed,
            failed_batches=self._failed_batches,
        )

    def check_integrity(self) -> None:
        """Recount the queue. Raises AssertionError if the accounting is wrong."""
        self._queue.check_integrity()


def to_wire(embedding: Embedding) -> str:
    """At length 1; one of zeros stays what it is."""
    length = float(np.linalg.norm(embedding))
    return base64.b64encode((embedding / (length or 1.0)).astype("<f4").tobytes()).decode()
