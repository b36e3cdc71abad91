"""/v1/batches: makes, shows, lists and cancels batches."""

from dataclasses import asdict
from typing import Any

from api.errors import ApiError
from api.protocols.batches.request import BatchListQuery, BatchRequest
from api.protocols.call import Call
from api.storage.batch import Batch

PURPOSE = "batch"


async def create(call: Call[BatchRequest]) -> dict[str, Any]:
    """Raises ApiError 400 if the file does not exist or is for another purpose, TooManyBatchesError."""
    request, storage, expiry = call.request, call.storage, call.request.output_expires_after
    file = await storage.call(storage.files.get, call.keeper, request.input_file_id)
    if file is None:
        raise _no_file(request.input_file_id)
    if file.purpose != PURPOSE:
        message = f"The file {file.id!r} has the purpose {file.purpose!r}. A batch needs a file with {PURPOSE!r}."
        raise ApiError(400, message, param="input_file_id", code="invalid_value")
    try:
        batch = await storage.call(
            storage.batches.create,
            call.keeper,
            call.tenant.name,
            request.path,
            file.id,
            request.metadata,
            expiry.seconds if expiry is not None else None,
        )
    except KeyError as error:
        raise _no_file(request.input_file_id) from error
    return rendered(batch)


async def retrieve(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404 if there is no such batch."""
    batch_id = call.path["batch_id"]
    batch = await call.storage.call(call.storage.batches.get, call.keeper, batch_id)
    if batch is None:
        raise _no_batch(batch_id)
    return rendered(batch)


async def list_batches(call: Call[BatchListQuery]) -> dict[str, Any]:
    """A page of batches, the newest first. Raises ApiError 400 if it is to begin after an unknown batch."""
    query, storage = call.request, call.storage
    try:
        found = await storage.call(storage.batches.page, call.keeper, query.after, query.limit + 1)
    except KeyError as error:
        message = f"No batch found with id '{query.after}'."
        raise ApiError(400, message, param="after", code="invalid_value") from error
    page = found[: query.limit]
    return {
        "object": "list",
        "data": [rendered(batch) for batch in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > len(page),
    }


async def cancel(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404 if there is no such batch, CannotCancelError if it has ended."""
    batch_id = call.path["batch_id"]
    batch = await call.storage.call(call.storage.batches.cancel, call.keeper, batch_id)
    if batch is None:
        raise _no_batch(batch_id)
    return rendered(batch)


def rendered(batch: Batch) -> dict[str, Any]:
    """The batch as OpenAI's API has it."""
    used = batch.usage
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.models[0] if len(batch.models) == 1 else None,
        "errors": {"object": "list", "data": [asdict(each) for each in batch.errors]} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file if batch.is_over else None,
        "error_file_id": batch.error_file if batch.is_over else None,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": used.input_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": used.input_tokens + used.output_tokens,
        },
        "metadata": batch.metadata,
    } | {f"{name}_at": getattr(batch, f"{name}_at") for name in times}


def _no_file(file_id: str) -> ApiError:
    return ApiError(400, f"No such File object: {file_id}", param="input_file_id", code="invalid_value")


def _no_batch(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{batch_id}'.")
