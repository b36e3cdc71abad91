"""The wire types of requests for text completions."""

from typing import Annotated, Final

from pydantic import Field, model_validator

from api.errors import ApiError
from api.protocols.fields import MAX_CHOICES, MAX_TOP_LOGPROBS, Tokens
from api.protocols.timings import TimedRequest

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default."""
MAX_PROMPTS: Final = 1024


class CompletionRequest(TimedRequest):
    """A request for text completions of prompts."""

    endpoint = "completions"

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.num_choices:
            raise ApiError(400, "'best_of' must not be less than 'n'.", param="best_of", code="invalid_value")
        if self.num_candidates > self.num_choices and self.stream:
            raise ApiError(400, "'best_of' cannot be combined with 'stream'.", param="best_of", code="invalid_value")
        if self.max_tokens == 0 and not self.echo:
            message = "'max_tokens' must be at least 1 unless 'echo' is true."
            raise ApiError(400, message, param="max_tokens", code="invalid_value")
        if self.suffix and self.echo:
            raise ApiError(400, "'suffix' cannot be combined with 'echo'.", param="suffix", code="invalid_value")
        if len(self.prompts()) * self.num_candidates > MAX_PROMPTS:
            message = f"'prompt' and 'n' ask for more than {MAX_PROMPTS} completions."
            raise ApiError(400, message, param="prompt", code="invalid_value")
        return self

    @property
    def num_candidates(self) -> int:
        """Number of completions to generate for each prompt. The best `num_choices` of them are returned."""
        return self.best_of or self.num_choices

    @property
    def num_sequences(self) -> int:
        return len(self.prompts()) * self.num_candidates

    @property
    def sequences_field(self) -> str:
        return "prompt" if len(self.prompts()) > 1 else "best_of" if self.best_of else "n"

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    def prompts(self) -> list[str] | list[list[int]]:
        prompt = self.prompt
        if prompt is None:
            return [""]
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return prompt
