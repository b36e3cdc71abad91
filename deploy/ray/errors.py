"""Errors of the proxy itself, in the form that the client's SDK expects."""

from http import HTTPStatus
from typing import Final

import orjson

GONE: Final = "The node that computed this answer has ended. Please send the request again."
NO_NODE: Final = "No node is ready."
TOO_LARGE: Final = "The request body is too large."

_TYPES: Final = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error"}
_ANTHROPIC_TYPES: Final = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large"}


def error_body(path: str, status: HTTPStatus, message: str) -> bytes:
    """The body of an error: Anthropic's form for messages, else OpenAI's."""
    if _is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    kind = _TYPES.get(status, "server_error")
    code = "request_too_large" if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else "node_unavailable"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def error_event(path: str, message: str) -> bytes:
    """The last event of a stream whose node has ended. SDKs raise an error for it."""
    data = error_body(path, HTTPStatus.SERVICE_UNAVAILABLE, message)
    return (b"event: error\n" if _is_anthropic(path) else b"") + b"data: " + data + b"\n\n"


def _is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")
