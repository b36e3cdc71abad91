"""The wire types of ranked documents."""

from typing import Literal

from api.protocols.types import Answer


class RankedText(Answer):
    text: str


class RankedDocument(Answer):
    index: int
    """Index of the document in `documents`."""
    relevance_score: float
    """The model's own number, as llama-server returns it. Its range depends on the model."""
    document: RankedText | None = None


class RerankUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Ranking(Answer):
    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    """The most relevant document first."""
    usage: RerankUsage
