"""The wire types of answers that several protocols share.

Answers are built as plain objects, for speed. Tests validate them against these types.
"""

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel

AnyT = TypeVar("AnyT")


class Answer(BaseModel):
    """A type of an answer. Fields without a default are always present, and there are no other fields."""

    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)


class AnyAnswer(RootModel[AnyT], Generic[AnyT]):
    """An answer of one of several types, or a list of answers."""

    model_config = ConfigDict(defer_build=True)


class ErrorDetails(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """OpenAI's error object."""

    error: ErrorDetails


class PromptTokensDetails(Answer):
    cached_tokens: int
    """Tokens that were found in the KV cache instead of computed."""
    audio_tokens: int


class CompletionTokensDetails(Answer):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    """Drafted tokens that became part of the answer, from whichever source."""
    rejected_prediction_tokens: int
    """Drafted tokens that were computed in vain. They are not part of `completion_tokens`."""


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Timings(Answer):
    """The times of a request, in milliseconds, with llama-server's names."""

    queue_ms: float
    """How long it waited in the engine."""
    cache_n: int
    """Prompt tokens that were found in the KV cache."""
    prompt_n: int
    """Prompt tokens that were computed."""
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    """Tokens of the answer."""
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    draft_n: int = 0
    """Drafted tokens that were computed; left out if there were none, as `draft_n_accepted`."""
    draft_n_accepted: int = 0


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]
