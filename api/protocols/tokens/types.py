"""The wire types of tokens and prompts."""

from pydantic import Field

from api.protocols.types import Answer


class TokenPiece(Answer):
    id: int
    piece: str


class Tokens(Answer):
    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] = Field(default_factory=list)
    """Left out unless requested."""


class Text(Answer):
    content: str
    prompt: str


class RenderedPrompt(Answer):
    prompt: str
