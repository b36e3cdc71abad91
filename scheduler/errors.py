"""Errors for a model that cannot be served. This module does not import llama.cpp."""


class ModelError(Exception):
    """The model cannot be served. The message is one line for the user."""


class NoMemoryError(ModelError):
    """The model does not fit into memory: `missing_bytes` more are needed."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
