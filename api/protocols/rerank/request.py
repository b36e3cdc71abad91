"""The wire types of requests that rank documents."""

from typing import Annotated, ClassVar, Final

from pydantic import Discriminator, Field, Tag

from api.protocols.fields import Lenient, Strict, UnservedFields
from api.protocols.priorities import PriorityField, wished_class
from api.tenants.tenant import Priority

MAX_DOCUMENTS: Final = 2048
"""Jina's limit."""


class TextDocument(Lenient):
    text: str


def _form(document: object) -> str:
    return "<text>" if isinstance(document, str) else "<object>"


Document = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextDocument, Tag("<object>")],
    Discriminator(_form),
]


class RerankRequest(Strict):
    """A request for the relevance of documents to a query, in the form of Jina and Cohere."""

    unserved: ClassVar[UnservedFields] = {
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
        "rank_fields": (["text"],),
    }

    model: str
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many results are returned, the best first; all by default."""
    return_documents: bool | None = None
    user: str | None = None
    priority: PriorityField | None = None

    @property
    def wished_class(self) -> Priority | None:
        """The class that the request asks for; None if it asks for none."""
        return wished_class(self.priority, None)

    @property
    def end_user(self) -> str | None:
        return self.user

    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [each if isinstance(each, str) else each.text for each in self.documents]
