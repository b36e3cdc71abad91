"""Texts in batches, as the embedder plans them and a reader computes them."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Embedding = NDArray[np.float32]


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
    """One text of a request: `num_computed <= len(tokens)`, and less than that until it has its embedding."""

    request_id: int
    tokens: NDArray[np.int32]
    sequence_id: int = -1
    """llama.cpp's number for it, from its first batch to its last."""
    num_computed: int = 0
    embedding: Embedding | None = None
    """What its computed tokens were pooled to, of no certain length."""

    def pool(self, embedding: Embedding, num_tokens: int, pooling: str) -> None:
        """Take in what the next tokens were pooled to."""
        if self.embedding is None or pooling == "last":
            self.embedding = embedding * num_tokens if pooling == "mean" else embedding
        elif pooling == "mean":
            self.embedding = self.embedding + embedding * num_tokens
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
    embeddings: list[Embedding]
    """What the tokens of each piece were pooled to, in the batch's order."""
    seconds: float
    """Wall time of the batch."""


class Reader(Protocol):
    """Whatever computes a batch: llama.cpp, or the tests' fake."""

    def read(self, batch: Batch) -> Pooled:
        """Raises StepError."""

    def forget(self, sequence_id: int) -> None:
        """Free what was computed of a text."""
