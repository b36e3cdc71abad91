"""Embeddings of texts: plans a batch of texts, commits its result, and keeps it within its time limit.

At most one batch of texts runs between two steps of the scheduler. It takes no longer than running streams may wait.
"""

import base64
import logging
import math
from collections.abc import Callable, Sequence
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
"""Tokens that a batch may have in any case. A smaller batch would mostly pay for reading the weights."""
MAX_FAILED_BATCHES: Final = 3
"""Batches that may fail in a row before their requests fail."""


@dataclass(frozen=True, slots=True)
class EmbedderStatistics:
    """Counters since the start. Only `requests` is a current number: of requests that have not ended."""

    requests: int
    texts: int
    tokens: int
    batches: int
    batch_seconds: float
    cancelled: int
    failed: int
    failed_batches: int


class Embedder:
    """Queues requests, plans batches of their texts, and returns the embeddings."""

    def __init__(
        self, open_reader: Callable[[], Reader], limits: Limits, pooling: str, seconds_per_token: float
    ) -> None:
        """`open_reader` may raise ModelError. It is called before the first batch, because it takes memory.

        `seconds_per_token` is the initial estimate of the cost of a token.
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
        """Queue a request. Returns an error answer, and queues nothing, if its texts are empty or too long."""
        lengths = [len(tokens) for tokens in embed.texts]
        if not lengths or min(lengths) < 1 or max(lengths) > self._limits.max_text_tokens:
            limit = self._limits.max_text_tokens
            return Embedded(embed.request_id, error=f"texts must have 1 to {limit} tokens each")
        texts = [Text(embed.request_id, np.array(tokens, np.int32)) for tokens in embed.texts]
        self._queue.add(embed.request_id, texts)
        return None

    def cancel(self, request_id: int) -> None:
        """End a request at once. Ignores a request that is unknown or has ended."""
        if request_id in self._queue.requests:
            self._end(request_id)
            self._cancelled += 1

    def _end(self, request_id: int) -> None:
        cut = self._queue.remove(request_id)
        if cut is not None:
            self._release(cut)

    def _release(self, text: Text) -> None:
        """Free the text's KV and its sequence id."""
        if self._reader is not None:
            self._reader.forget(text.sequence_id)
        self._queue.return_id(text)

    # -- batches -----------------------------------------------------------------------------------------------------

    def step(self, seconds: float, computing: Callable[[Sequence[int]], None] = lambda _: None) -> list[Embedded]:
        """Compute a batch of about `seconds`; infinity is no limit.

        `computing` is called with the ids of the batch's requests before they are computed.
        """
        try:
            reader = self._reader = self._reader or self._open_reader()
        except ModelError as error:
            _log.error("cannot compute embeddings: %s", error)
            return self._fail(list(self._queue.requests), str(error))
        batch = self.plan(self._budget(seconds))
        computing(list({piece.text.request_id: None for piece in batch.pieces}))
        try:
            pooled = reader.read(batch)
        except StepError as error:
            _log.error("a batch of texts failed: %s; batch: %s", error, batch)
            return self.rollback(batch)
        return self.commit(batch, pooled)

    def _budget(self, seconds: float) -> int:
        """Returns how many tokens can be computed in `seconds`."""
        if math.isinf(seconds):
            return self._limits.batch_tokens
        each = self._cost.token_seconds(self._queue.num_computed)
        fitting = int((seconds - self._cost.fixed_seconds) / each)
        return min(max(fitting, SMALLEST_BATCH), self._limits.batch_tokens)

    def plan(self, budget: int) -> Batch:
        """Plan the next batch: at most `budget` tokens if texts can be cut."""
        return self._queue.plan(budget)

    def commit(self, batch: Batch, pooled: Pooled) -> list[Embedded]:
        """Record a computed batch. Returns the embeddings that are complete."""
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
                assert text.embedding is not None, "pool() was called"
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
        """Record a failed batch: its texts start again. Returns errors for the requests that fail for good."""
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

    # -- statistics and checks ---------------------------------------------------------------------------------------

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
    """Normalises an embedding to length 1 (all zeros stay zeros). Returns it as float32 in base64."""
    length = float(np.linalg.norm(embedding))
    return base64.b64encode((embedding / (length or 1.0)).astype("<f4").tobytes()).decode()
