"""What clients send about files."""

from typing import Annotated, Final, Literal

from pydantic import Field

from api.errors import ApiError
from api.protocols.fields import Query, Wire

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MIN_EXPIRY: Final = 3_600
MAX_EXPIRY: Final = 2_592_000
BATCH_EXPIRY: Final = MAX_EXPIRY
"""Seconds that a file for batches is kept if the upload does not say it, as with OpenAI."""
MAX_LISTED: Final = 10_000

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
"""OpenAI's. Only `batch` has a use here; the others are labels."""


class FileForm(Wire):
    """The fields of an upload beside the file, as a form sends them."""

    purpose: Purpose
    anchor: Annotated[Literal["created_at"] | None, Field(alias="expires_after[anchor]")] = None
    seconds: Annotated[int | None, Field(alias="expires_after[seconds]", ge=MIN_EXPIRY, le=MAX_EXPIRY)] = None

    @property
    def expires_after(self) -> int | None:
        """Seconds; None to keep the file. Raises ApiError 400 if only one of the two fields is given."""
        if (self.anchor is None) != (self.seconds is None):
            missing = "expires_after[anchor]" if self.anchor is None else "expires_after[seconds]"
            raise ApiError(
                400, f"Missing required parameter: '{missing}'.", param=missing, code="missing_required_parameter"
            )
        return BATCH_EXPIRY if self.seconds is None and self.purpose == "batch" else self.seconds


class FileUpload(FileForm):
    """The form of an upload, for the OpenAPI document."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]


class FileListQuery(Query):
    after: str | None = None
    """The id of the file after which the page begins."""
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = MAX_LISTED
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None
