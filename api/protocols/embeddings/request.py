"""The wire types of requests for embeddings."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag

from api.protocols.fields import Strict, Tokens
from api.protocols.priorities import PriorityField, wished_class
from api.tenants.tenant import Priority

MAX_INPUTS: Final = 2048
"""OpenAI's limit."""

Text = Annotated[str, Field(min_length=1)]


def _kind(given: object) -> str | None:
    """The kind of an input. The first element of a list decides, so an error names the element that differs."""
    if isinstance(given, list):
        first = given[0] if given else ""
        return "many tokens" if isinstance(first, list) else "many texts" if isinstance(first, str) else "tokens"
    return "text" if isinstance(given, str) else None


Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag("many texts")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS), Tag("many tokens")],
    Discriminator(
        _kind,
        custom_error_type="input_kind",
        custom_error_message="Input should be a text, tokens, or a list of either",
    ),
]


class EmbeddingsRequest(Strict):
    """A request for embeddings of texts, or of tokens, which are used without change."""

    endpoint = "embeddings"

    model: str
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Embeddings are truncated to this many components and renormalized. For models that were trained for it."""
    user: str | None = None
    priority: PriorityField | None = None

    @property
    def wished_class(self) -> Priority | None:
        """The class that the request asks for; None if it asks for none."""
        return wished_class(self.priority, None)

    @property
    def end_user(self) -> str | None:
        return self.user

    def inputs(self) -> dict[str, str | list[int]]:
        """The inputs by their wire names, such as `input[0]`."""
        if isinstance(self.input, str):
            return {"input": self.input}
        if isinstance(self.input[0], int):
            return {"input": self.input}
        several: Sequence[str | list[int]] = self.input
        return {f"input[{index}]": each for index, each in enumerate(several)}
