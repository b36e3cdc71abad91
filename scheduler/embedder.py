"""Vectors of texts, beside the answers: which texts the next batch holds, and what came of it.

Between two steps of the answers there is one batch of texts at most, no longer than streams can wait.
"""

import base64
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.cost import StepCost
from scheduler.errors import ModelError
from scheduler.messages import Embed, Embedded
from scheduler.plan import StepError

_log = logging.getLogger("cortex.engine")

SMALLEST_BATCH: Final = 32
"""Tokens that a batch may have however short the time is: below, most of it goes into reading the weights."""
MAX_FAILED_BATCHES: Final = 3
"""In a row, before the requests in them are given up."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What texts, and batches of them, may be."""

    max_text_tokens: int
    batch_tokens: int
    """Of all texts of a batch, unless it is one long text that cannot be cut."""
    max_texts: int
    """In a batch."""
    cuts: bool
    """Whether a text may be computed in several batches: not where its tokens look ahead."""


@dataclass(eq=False, slots=True)
class Text:
    """One text of a request: `num_computed <= len(tokens)`, and less than that until it has its vector."""

    request_id: int
    tokens: NDArray[np.int32]
    sequence_id: int = -1
    """llama.cpp's number for it, from its first batch to its last."""
    num_computed: int = 0
    vector: Vector | None = None
    """What its computed tokens were pooled to, of no certain length."""

    def pool(self, vector: Vector, num_tokens: int, pooling: str) -> None:
        """Take in what the next tokens were pooled to."""
        if self.vector is None or pooling == "last":
            self.vector = vector * num_tokens if pooling == "mean" else vector
        elif pooling == "mean":
            self.vector = self.vector + vector * num_tokens
        self.num_computed += num_tokens


@dataclass(slots=True)
class Piece:
    """Tokens [start, start + num_tokens) of one text."""

    text: Text
    start: int
    num_tokens: int

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self.text.tokens[self.start : self.start + self.num_tokens]

    @property
    def is_last(self) -> bool:
        return self.start + self.num_tokens == len(self.text.tokens)


@dataclass(slots=True)
class Batch:
    """One llama_decode; those pieces that are of one request are in the order of its texts."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    @property
    def num_pairs(self) -> int:
        """Cells that each of its tokens attends to, together."""
        return sum(piece.num_tokens * (piece.start + piece.num_tokens) for piece in self.pieces)

    def __str__(self) -> str:
        """For the log of a failed batch: lengths, never text."""
        return " ".join(f"{piece.text.request_id}:{piece.start}+{piece.num_tokens}" for piece in self.pieces)


@dataclass(slots=True)
class Pooled:
    vectors: list[Vector]
    """What the tokens of each piece were pooled to, in the batch's order."""
    seconds: float
    """Wall time of the batch."""


class Reader(Protocol):
    """Whatever computes a batch: llama.cpp, or the tests' fake."""

    def read(self, batch: Batch) -> Pooled:
        """Raises StepError."""

    def forget(self, sequence_id: int) -> None:
        """Free what was computed of a text."""


@dataclass(eq=False, slots=True)
class _Request:
    request_id: int
    waiting: deque[Text]
    """Texts that no batch has begun."""
    num_left: int
    """Texts without a vector."""


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
    """Requests take turns, a text each; a text is computed once, and those of a request in order.

    One text at a time may be so long that it is cut, so that a batch needs room for one text and itself. It gets half
    of each batch, and what the others leave; texts of up to half a batch are never cut.
    """

    def __init__(
        self, open_reader: Callable[[], Reader], limits: Limits, pooling: str, seconds_per_token: float
    ) -> None:
        """`open_reader` is called before the first batch, and may raise ModelError: nobody may ever want a vector.

        `seconds_per_token` is a first guess.
        """
        self._open_reader = open_reader
        self._reader: Reader | None = None
        self._limits = limits
        self._pooling = pooling
        self._cost = StepCost(seconds_per_token)
        self._requests: dict[int, _Request] = {}
        self._line: deque[_Request] = deque()
        """Requests with texts to begin, in the order of their turns: all such but that of the text that is cut."""
        self._cut: Text | None = None
        self._free_ids = list(range(limits.max_texts - 1, -1, -1))
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
        return bool(self._requests)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, embed: Embed) -> Embedded | None:
        """Queue a request. Returns its only answer if it can never be served."""
        lengths = [len(tokens) for tokens in embed.texts]
        if not lengths or min(lengths) < 1 or max(lengths) > self._limits.max_text_tokens:
            limit = self._limits.max_text_tokens
            return Embedded(embed.request_id, error=f"texts must have 1 to {limit} tokens each")
        texts = deque(Text(embed.request_id, np.array(tokens, np.int32)) for tokens in embed.texts)
        request = self._requests[embed.request_id] = _Request(embed.request_id, texts, len(texts))
        self._line.append(request)
        return None

    def cancel(self, request_id: int) -> None:
        """End a request at once; one that is unknown or has ended is left alone."""
        if request_id in self._requests:
            self._end(request_id)
            self._cancelled += 1

    def _end(self, request_id: int) -> None:
        request = self._requests.pop(request_id)
        if request in self._line:
            self._line.remove(request)
        if self._cut is not None and self._cut.request_id == request_id:
            self._release(self._cut)
            self._cut = None

    def _release(self, text: Text) -> None:
        """What was computed of it, and its id."""
        if self._reader is not None:
            self._reader.forget(text.sequence_id)
        self._free_ids.append(text.sequence_id)
        text.sequence_id = -1

    # -- batches -----------------------------------------------------------------------------------------------------

    def step(self, seconds: float) -> list[Embedded]:
        """Compute a batch that takes about so long; infinity for no limit."""
        try:
            reader = self._reader = self._reader or self._open_reader()
        except ModelError as error:
            _log.error("no vectors can be made: %s", error)
            return self._fail(list(self._requests), str(error))
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
        context = self._cut.num_computed if self._cut is not None else 0
        fitting = int((seconds - self._cost.fixed_seconds) / self._cost.token_seconds(context))
        return min(max(fitting, SMALLEST_BATCH), self._limits.batch_tokens)

    def plan(self, budget: int) -> Batch:
        """Choose what the next batch computes, of `budget` tokens at most where texts can be cut."""
        batch, left = Batch(), budget
        while left > 0:
            if self._cut is None and self._limits.cuts:
                self._cut = self._next_to_cut(budget // 2)
            cut = self._cut
            reserved = 0 if cut is None else min(len(cut.tokens) - cut.num_computed, left - left // 2)
            left -= self._pack(batch, left - reserved)
            if cut is None:
                break
            piece = Piece(cut, cut.num_computed, min(len(cut.tokens) - cut.num_computed, left))
            batch.pieces.append(piece)
            left -= piece.num_tokens
            if not piece.is_last:
                break
            self._cut = None
            self._line_up(self._requests[cut.request_id])
        return batch

    def _next_to_cut(self, longest_whole: int) -> Text | None:
        """The first in line that is longer than that, with an id of its own; its request leaves the line."""
        long = (request for request in self._line if len(request.waiting[0].tokens) > longest_whole)
        request = next(long, None) if self._free_ids else None
        if request is None:
            return None
        self._line.remove(request)
        return self._begin(request)

    def _begin(self, request: _Request) -> Text:
        text = request.waiting.popleft()
        text.sequence_id = self._free_ids.pop()
        return text

    def _pack(self, batch: Batch, room: int) -> int:
        """Add whole texts of so many tokens at most. Returns how many these are.

        Whose text does not fit stays in front. Where nothing can be cut, a text that would never fit comes alone.
        """
        left, too_long = room, []
        while self._line and self._free_ids and left > 0:
            request = self._line.popleft()
            length = len(request.waiting[0].tokens)
            if length > left and (self._limits.cuts or batch.pieces):
                too_long.append(request)
                continue
            batch.pieces.append(Piece(self._begin(request), 0, length))
            left -= length
            self._line_up(request)
        self._line.extendleft(reversed(too_long))
        return room - left

    def _line_up(self, request: _Request) -> None:
        if request.waiting:
            self._line.append(request)

    def commit(self, batch: Batch, pooled: Pooled) -> list[Embedded]:
        """Book what the batch computed, and tell the vectors that are whole."""
        self._batches += 1
        self._batch_seconds += pooled.seconds
        self._tokens += batch.num_tokens
        self._failed_in_a_row = 0
        if batch.num_tokens >= SMALLEST_BATCH:
            self._cost.observe(batch.num_tokens, batch.num_pairs, pooled.seconds)
        told: dict[int, list[str]] = {}
        for piece, vector in zip(batch.pieces, pooled.vectors, strict=True):
            text = piece.text
            text.pool(vector, piece.num_tokens, self._pooling)
            if piece.is_last:
                assert text.vector is not None, "something of it was pooled"
                told.setdefault(text.request_id, []).append(to_wire(text.vector))
                self._release(text)
        for request_id, whole in told.items():
            self._texts += len(whole)
            request = self._requests[request_id]
            request.num_left -= len(whole)
            if not request.num_left:
                self._end(request_id)
        return [Embedded(request_id, whole) for request_id, whole in told.items()]

    def rollback(self, batch: Batch) -> list[Embedded]:
        """Book a batch that failed: its texts begin anew. Tells the requests that are given up."""
        self._failed_batches += 1
        self._failed_in_a_row += 1
        for piece in reversed(batch.pieces):
            text, request = piece.text, self._requests[piece.text.request_id]
            self._release(text)
            text.num_computed, text.vector = 0, None
            if request not in self._line:
                self._line.appendleft(request)
            request.waiting.appendleft(text)
        self._cut = None
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
            requests=len(self._requests),
            texts=self._texts,
            tokens=self._tokens,
            batches=self._batches,
            batch_seconds=self._batch_seconds,
            cancelled=self._cancelled,
            failed=self._failed,
            failed_batches=self._failed_batches,
        )

    def check_integrity(self) -> None:
        """Recount the ids. Raises AssertionError if the accounting is wrong."""
        held = [self._cut.sequence_id] if self._cut is not None else []
        assert sorted(self._free_ids + held) == list(range(self._limits.max_texts)), "ids"


def to_wire(vector: Vector) -> str:
    """At length 1; one of zeros stays what it is."""
    length = float(np.linalg.norm(vector))
    return base64.b64encode((vector / (length or 1.0)).astype("<f4").tobytes()).decode()
