"""OpenAI's field `prediction`: text that the answer probably contains."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from api.protocols.fields import Strict


class PredictedText(Strict):
    type: Literal["text"]
    text: str


def _form(content: object) -> str:
    return "<parts>" if isinstance(content, list) else "<text>"


class Prediction(Strict):
    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[PredictedText], Field(min_length=1), Tag("<parts>")],
        Discriminator(_form),
    ]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
