"""The wire types of batches."""

from typing import Literal

from api.protocols.types import Answer
from api.storage.batch import Status


class BatchError(Answer):
    code: str
    message: str
    param: str | None
    line: int | None
    """The line of the input file, from 1."""


class BatchErrors(Answer):
    object: Literal["list"]
    data: list[BatchError]


class BatchRequestCounts(Answer):
    total: int
    completed: int
    failed: int
    """Lines whose answer is an error. When the batch has ended, also lines without an answer."""


class BatchInputDetails(Answer):
    cached_tokens: int
    """Tokens that were found in the KV cache instead of computed."""


class BatchOutputDetails(Answer):
    reasoning_tokens: int


class BatchUsage(Answer):
    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class Batch(Answer):
    """Times are seconds since the epoch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    """The model of all lines; null if they name several, or before the file was read."""
    errors: BatchErrors | None
    """Why the input file was refused."""
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(Answer):
    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
