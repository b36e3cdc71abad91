"""The wire types of requests about batches."""

from typing import Annotated, Literal

from pydantic import Field

from api.protocols.fields import Metadata, Query, Strict

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]


class OutputExpiresAfter(Strict):
    anchor: Literal["created_at"]
    """The time at which the file is created."""
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(Strict):
    input_file_id: str
    path: Annotated[Endpoint, Field(alias="endpoint")]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchListQuery(Query):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
