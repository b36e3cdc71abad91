"""Errors of files and batches, as clients see them."""

from typing import Final

from api.errors import ApiError
from api.storage.batches import CannotCancelError, FileInUseError, TooManyBatchesError
from api.storage.errors import BusyError, NoStorageError, QuotaError, StorageError, StorageFullError

_CONFLICTS: Final[dict[type[StorageError], str]] = {
    CannotCancelError: "invalid_status",
    FileInUseError: "file_in_use",
    TooManyBatchesError: "too_many_batches",
}
"""Codes of a 409."""


def refusal(error: StorageError) -> ApiError:
    """SDKs would send a request with a 409 or 507 again; the header for them says that it is of no use."""
    if isinstance(error, StorageFullError):
        return ApiError(507, str(error), kind="server_error", code="insufficient_storage", should_retry=False)
    if isinstance(error, QuotaError):
        return ApiError(507, str(error), code="storage_quota_exceeded", should_retry=False)
    if isinstance(error, BusyError):
        return ApiError(503, str(error), kind="server_error", code="too_many_uploads", retry_after=1)
    if isinstance(error, NoStorageError):
        return ApiError(503, str(error), kind="server_error", code="no_storage", should_retry=False)
    if type(error) in _CONFLICTS:
        return ApiError(409, str(error), code=_CONFLICTS[type(error)], should_retry=False)
    return ApiError(500, str(error), kind="server_error", code="storage_error")
