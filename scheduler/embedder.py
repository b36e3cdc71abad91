"""Embeddings of texts: plans a batch of texts, commits its result, and keeps it within its time limit.

At most one batch of texts runs between two steps of the scheduler. It takes no longer than running streams may wait.
"""

import base64
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.cost import StepCost
from scheduler.errors import ModelError
from scheduler.failures import RequestError, attempt
from scheduler.messages import Embed, Embedded
from scheduler.plan import StepError, attempt_step
from scheduler.suspects import Suspects
from scheduler.text_queue import TextQueue
from scheduler.texts import Batch, Embedding, Limits, Piece, Pooled, Reader, Text

_log = logging.getLogger("cortex.engine")

SMALLEST_BATCH: Final = 32
"""Tokens that a batch may have in any case. A smaller batch would mostly pay for reading the weights."""

Charge = Callable[[str, float, int, int], None]
"""Charges a tenant with a weight and a class for a number of tokens; see Policy.charge."""


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
        self,
        open_reader: Callable[[], Reader],
        limits: Limits,
        pooling: str,
        seconds_per_token: float,
        charge: Charge = lambda *_: None,
    ) -> None:
        """`open_reader` may raise ModelError. It is called before the first batch, because it takes memory.

        `seconds_per_token` is the initial estimate of the cost of a token. `charge` gets the number of computed tokens.
        """
        self.on_batch: Callable[[Iterable[tuple[str, int]], float], None] | None = None
        """Gets the tenant and the tokens of each piece of a computed batch, and its seconds; None if nobody watches."""
        self._charge = charge
        self._open_reader = open_reader
        self._reader: Reader | None = None
        self._limits = limits
        self._pooling = pooling
        self._cost = StepCost(seconds_per_token)
        self._queue = TextQueue(limits)
        self._suspects = Suspects()
        self._texts = 0
        self._tokens = 0
        self._batches = 0
        self._batch_seconds = 0.0
        self._cancelled = 0
        self._failed = 0
        self._failed_batches = 0

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
        self._queue.add(embed, texts)
        return None

    def cancel(self, request_id: int) -> None:
        """End a request at once. Ignores a request that is unknown or has ended."""
        if request_id in self._queue.requests:
            self._end(request_id)
            self._cancelled += 1

    def _end(self, request_id: int) -> None:
        self._suspects.discard(request_id)
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

        `computing` is called with the ids of the batch's requests before they are computed, and with those of all
        requests before the first batch opens the context.
        """
        if self._reader is None:
            computing(list(self._queue.requests))
            reader = attempt(self._open)
            if isinstance(reader, RequestError):
                return [self._fail(request_id, str(reader)) for request_id in list(self._queue.requests)]
            self._reader = reader
        batch = self.plan(self._budget(seconds))
        computing(list({piece.text.request_id: None for piece in batch.pieces}))
        pooled = attempt_step(self._reader.read, batch)
        if isinstance(pooled, StepError):
            return self.rollback(batch, pooled)
        return self.commit(batch, pooled)

    def _open(self) -> Reader:
        try:
            return self._open_reader()
        except ModelError as error:
            _log.error("cannot compute embeddings: %s", error)  # the message says all
            raise RequestError(str(error)) from error

    def _budget(self, seconds: float) -> int:
        """Returns how many tokens can be computed in `seconds`."""
        if math.isinf(seconds):
            return self._limits.batch_tokens
        each = self._cost.token_seconds(self._queue.num_computed)
        fitting = int((seconds - self._cost.fixed_seconds) / each)
        return min(max(fitting, SMALLEST_BATCH), self._limits.batch_tokens)

    def plan(self, budget: int) -> Batch:
        """Plan the next batch: at most `budget` tokens if texts can be cut."""
        if not self._suspects:
            return self._queue.plan(budget)
        chosen = self._suspects.choose(list(self._queue.requests))
        cut = self._queue.cut
        if cut is not None and cut.request_id not in chosen:  # the memory holds only one text that is cut
            self._restart(cut)
        return self._queue.plan(budget, chosen)

    def commit(self, batch: Batch, pooled: Pooled) -> list[Embedded]:
        """Record a computed batch. Returns the embeddings that are complete."""
        self._batches += 1
        self._batch_seconds += pooled.seconds
        self._tokens += batch.num_tokens
        if batch.num_tokens >= SMALLEST_BATCH:
            self._cost.observe(batch.num_tokens, batch.num_pairs, pooled.seconds)
        if self.on_batch is not None:
            requests = self._queue.requests
            pieces = ((requests[each.text.request_id].embed.tenant, each.num_tokens) for each in batch.pieces)
            self.on_batch(pieces, pooled.seconds)
        finished: dict[int, list[str]] = {}
        failed: dict[int, RequestError] = {}
        for piece, embedding in zip(batch.pieces, pooled.embeddings, strict=True):
            request_id = piece.text.request_id
            owner = self._queue.requests[request_id].embed
            self._charge(owner.tenant, owner.weight, owner.priority, piece.num_tokens)
            if self._suspects:
                self._suspects.passed(request_id, sampled=True)
            whole = attempt(self._pool, piece, embedding)
            if piece.is_last:
                self._release(piece.text)
            if isinstance(whole, RequestError):
                failed[request_id] = whole
            elif whole is not None:
                finished.setdefault(request_id, []).append(whole)
        for request_id in failed:
            finished.pop(request_id, None)
        for request_id, embeddings in finished.items():
            self._texts += len(embeddings)
            request = self._queue.requests[request_id]
            request.num_left -= len(embeddings)
            if not request.num_left:
                self._end(request_id)
        errors = [self._fail(request_id, str(error)) for request_id, error in failed.items()]
        return [Embedded(request_id, embeddings) for request_id, embeddings in finished.items()] + errors

    def _pool(self, piece: Piece, embedding: Embedding) -> str | None:
        """Add a piece's embedding to its text. Returns the text's embedding if it is complete, as `to_wire` does."""
        text = piece.text
        text.pool(embedding, piece.num_tokens, self._pooling)
        assert text.embedding is not None, "pool() was called"
        if not np.isfinite(text.embedding).all():
            raise RequestError("the model computed an embedding that is not valid (NaN or infinity) for this request")
        return to_wire(text.embedding, normalised=self._pooling != "rank") if piece.is_last else None

    def rollback(self, batch: Batch, error: StepError) -> list[Embedded]:
        """Record a failed batch: its texts start again. Returns an error for a request that fails even alone."""
        self._failed_batches += 1
        for piece in reversed(batch.pieces):
            self._restart(piece.text)
        guilty = self._suspects.failed(list(dict.fromkeys(piece.text.request_id for piece in batch.pieces)))
        if guilty is None:
            return []
        return [self._fail(guilty, f"the model failed on this request: {error}")]

    def _restart(self, text: Text) -> None:
        self._release(text)
        self._queue.put_back(text)

    def _fail(self, request_id: int, reason: str) -> Embedded:
        self._end(request_id)
        self._failed += 1
        return Embedded(request_id, error=reason)

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


def to_wire(embedding: Embedding, *, normalised: bool = True) -> str:
    """Normalises an embedding to length 1 (all zeros stay zeros), but not a score. Returns it as float32 in base64."""
    length = 1.0
    if normalised:
        length = float(np.linalg.norm(embedding.astype(np.float64)))  # a square may be too large for single precision
    return base64.b64encode((embedding / (length or 1.0)).astype("<f4").tobytes()).decode()
