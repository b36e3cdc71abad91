"""Vectors of texts."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from api.schemas.common import Strict
from api.schemas.completion import Tokens

MAX_INPUTS: Final = 2048
"""OpenAI's."""

Text = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(Strict):
    """Texts, or tokens that are taken as they are."""

    model: str
    input: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only so many of the first components, brought to length 1 again; for models that were trained for it."""
    user: str | None = None

    def inputs(self) -> dict[str, str | list[int]]:
        """By the names that the wire has for them."""
        if isinstance(self.input, str):
            return {"input": self.input}
        if isinstance(self.input[0], int):
            return {"input": self.input}
        several: Sequence[str | list[int]] = self.input
        return {f"input[{index}]": each for index, each in enumerate(several)}
