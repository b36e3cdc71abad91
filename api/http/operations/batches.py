"""Operations about batches."""

from typing import Final

from api.http.operation import Operation, Parameter
from api.protocols.batches import answer as batches
from api.protocols.batches.request import BatchListQuery, BatchRequest
from api.protocols.batches.types import Batch, BatchList

BATCH_ID: Final = {"batch_id": Parameter("The batch's id.")}

BATCHES: Final = (
    Operation(
        "create_batch",
        "POST",
        "/v1/batches",
        "Run the requests of a file whenever there is room",
        batches.create,
        Batch,
        BatchRequest,
        errors=(400, 409, 413, 500, 503, 507),
    ),
    Operation(
        "list_batches",
        "GET",
        "/v1/batches",
        "The batches of the client, the newest first",
        batches.list_batches,
        BatchList,
        query=BatchListQuery,
        errors=(400, 500, 503),
    ),
    Operation(
        "get_batch",
        "GET",
        "/v1/batches/{batch_id}",
        "A batch: its status, and its files when it has ended",
        batches.retrieve,
        Batch,
        errors=(404, 500, 503),
        parameters=BATCH_ID,
    ),
    Operation(
        "cancel_batch",
        "POST",
        "/v1/batches/{batch_id}/cancel",
        "End a batch early",
        batches.cancel,
        Batch,
        errors=(404, 409, 500, 503, 507),
        parameters=BATCH_ID,
    ),
)
