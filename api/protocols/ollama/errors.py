"""Errors in Ollama's form."""

from typing import Any

from api.errors import ApiError


def is_ours(path: str) -> bool:
    """Whether a URL's path belongs to Ollama's API. Its errors have Ollama's form."""
    return path.startswith("/api/")


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in Ollama's form, which has only a text: it names the invalid field."""
    if error.param and error.param not in error.message:
        return {"error": f"{error.param}: {error.message}"}
    return {"error": error.message}


def not_found(name: str, error: ApiError) -> ApiError:
    """The error for an unknown model, with Ollama's words."""
    rest = error.message.removeprefix(f"The model {name!r} does not exist. ")
    return ApiError(404, f"model '{name}' not found. {rest}", param=error.param, code=error.code)
