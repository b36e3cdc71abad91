"""Why a model is not served, for modules that know no llama.cpp."""


class ModelError(Exception):
    """The model cannot be served; the message is one line for the user."""


class NoMemoryError(ModelError):
    """It could be, with so many bytes more of memory."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
