"""Errors of files and batches, as clients see them."""

from api.errors import ApiError
from api.storage.errors import BusyError, NoStorageError, QuotaError, StorageError, StorageFullError


def refusal(error: StorageError) -> ApiError:
    """SDKs would send a request with a 507 again; the header for them says that it is of no use."""
    if isinstance(error, StorageFullError):
        return ApiError(507, str(error), kind="server_error", code="insufficient_storage", should_retry=False)
    if isinstance(error, QuotaError):
        return ApiError(507, str(error), code="storage_quota_exceeded", should_retry=False)
    if isinstance(error, BusyError):
        return ApiError(503, str(error), kind="server_error", code="too_many_uploads", retry_after=1)
    if isinstance(error, NoStorageError):
        return ApiError(503, str(error), kind="server_error", code="no_storage", should_retry=False)
    return ApiError(500, str(error), kind="server_error", code="storage_error")
