"""The answers about files."""

from typing import Literal

from api.protocols.types import Answer


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    """Seconds since the epoch."""
    expires_at: int | None = None
    """Left out if it does not expire."""
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(Answer):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(Answer):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
