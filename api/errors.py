"""Errors in the format of OpenAI's API."""

from collections.abc import Iterator
from typing import Any


class ApiError(Exception):
    """An error response to a client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        """`param`: path of the invalid field. `retry_after`: seconds. `should_retry`: None if the status says it."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.should_retry = should_retry

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class InterruptedRequestError(ApiError):
    """The engine was stopped before the request had ended, which says nothing about the request."""

    def __init__(self, message: str) -> None:
        super().__init__(500, message, kind="server_error", code="internal_error")


def os_error_text(error: OSError) -> str:
    """The error in one line, with the file's name if there is one."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group and of the groups in it, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, kind="server_error", code=code, retry_after=1)


def server_error(message: str) -> ApiError:
    return ApiError(500, message, kind="server_error", code="internal_error")
