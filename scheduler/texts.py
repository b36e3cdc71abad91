"""Data structures for embeddings: texts, the batches that the embedder plans, and the reader that computes them."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Embedding = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of texts and of batches."""

    max_text_tokens: int
    batch_tokens: int
    """Maximum tokens of a batch, except for a single text that cannot be cut."""
    max_texts: int
    """Maximum number of texts in a batch."""
    cuts: bool
    """Whether a text may be computed in several batches. False if its tokens attend to later ones."""


@dataclass(eq=False, slots=True)
class Text:
    """One text of a request."""

    request_id: int
    tokens: NDArray[np.int32]
    sequence_id: int = -1
    """llama.cpp's sequence id, from the text's first batch to its last."""
    num_computed: int = 0
    embedding: Embedding | None = None
    """The pooled embedding of the computed tokens, not normalised."""

    def pool(self, embedding: Embedding, num_tokens: int, pooling: str) -> None:
        """Combine the embedding with that of the next `num_tokens` tokens."""
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
    """One llama_decode. Pieces of the same request are in the order of its texts."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    @property
    def num_pairs(self) -> int:
        """Sum over all tokens of the cells that each attends to."""
        return sum(piece.num_tokens * (piece.start + piece.num_tokens) for piece in self.pieces)

    def __str__(self) -> str:
        """A summary for the log of a failed batch: request ids, positions and lengths, but no tokens."""
        return " ".join(f"{piece.text.request_id}:{piece.start}+{piece.num_tokens}" for piece in self.pieces)


@dataclass(slots=True)
class Pooled:
    embeddings: list[Embedding]
    """The pooled embedding of each piece, in the batch's order."""
    seconds: float
    """Wall time of the batch."""


class Reader(Protocol):
    """Computes batches: with llama.cpp, or as a fake in the tests."""

    def read(self, batch: Batch) -> Pooled:
        """Raises StepError if the batch fails."""

    def forget(self, sequence_id: int) -> None:
        """Free the KV of a text."""
