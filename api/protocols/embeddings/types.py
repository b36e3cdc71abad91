"""The wire types of embeddings."""

from typing import Literal

from api.protocols.types import Answer


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    """Index of the text in `input`."""
    embedding: list[float] | str
    """The components of an embedding of norm 1, or their little-endian float32 in base64."""


class EmbeddingsUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
