"""The operations of files."""

from functools import partial
from typing import IO, Any, Final, Self

import trio

from api.errors import ApiError
from api.protocols.body import Download
from api.protocols.call import Call
from api.protocols.files.form import FileReceiver, too_large
from api.protocols.files.request import MAX_FILE_BYTES, FileListQuery
from api.protocols.files.types import FileObject
from api.storage.files import StoredFile
from api.storage.storage import Storage

PIECE_BYTES: Final = 256 * 1024
"""Bytes that go to or come from the disk at once."""
FORM_BYTES: Final = 64 * 1024
"""Bytes of an upload that may be something else than its file."""


async def create(call: Call[None]) -> dict[str, Any]:
    """Store the file of an upload, which goes to the disk as it arrives.

    Raises ApiError 400, 413 or 415 for an invalid form, 408 for a slow one, StorageError if it cannot be stored.
    """
    body, storage = call.body, call.storage
    assert body is not None
    begin = partial(storage.files.begin, call.keeper, purpose="")
    receiver = FileReceiver(body.content_type, begin)
    if body.length is not None and body.length > MAX_FILE_BYTES + FORM_BYTES:
        raise too_large()
    try:
        piece = bytearray()
        async for data in body:
            piece += data
            if len(piece) >= PIECE_BYTES:
                await storage.call(receiver.feed, bytes(piece))
                piece.clear()
        await storage.call(receiver.feed, bytes(piece))
        return _rendered(await storage.call(receiver.finish))
    finally:
        with trio.CancelScope(shield=True):
            await storage.call(receiver.abort)


async def list_files(call: Call[FileListQuery]) -> dict[str, Any]:
    """A page of files, latest first by default. Raises ApiError 400 if it is to begin after an unknown file."""
    query, storage = call.request, call.storage
    try:
        found = await storage.call(
            storage.files.list, call.keeper, query.purpose, query.after, query.limit + 1, query.order
        )
    except KeyError:
        message = f"File with id '{query.after}' not found."
        raise ApiError(400, message, param="after", code="invalid_value") from None
    page = found[: query.limit]
    return {
        "object": "list",
        "data": [_rendered(file) for file in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > len(page),
    }


async def retrieve(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404 if there is no such file."""
    return _rendered(await _found(call))


async def delete(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404 if there is no such file, FileInUseError if a batch reads it."""
    storage, file_id = call.storage, call.path["file_id"]
    if not await storage.call(storage.files.delete, call.keeper, file_id, storage.batches.keeps_used_files):
        raise _not_found(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


async def content(call: Call[None]) -> Download:
    """The bytes of a file, from the disk. Raises ApiError 404 if there is no such file."""
    storage, file = call.storage, await _found(call)
    opened = await storage.call(storage.files.open, file)
    return Download(_Pieces(storage, opened), file.num_bytes, file.filename)


class _Pieces:
    def __init__(self, storage: Storage, opened: IO[bytes]) -> None:
        self._storage = storage
        self._opened = opened

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not (piece := await self._storage.call(self._opened.read, PIECE_BYTES)):
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._opened.close()


async def _found(call: Call[None]) -> StoredFile:
    storage, file_id = call.storage, call.path["file_id"]
    found = await storage.call(storage.files.get, call.keeper, file_id)
    if found is None:
        raise _not_found(file_id)
    return found


def _rendered(file: StoredFile) -> dict[str, Any]:
    rendered = FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )
    return rendered.model_dump(exclude_none=True)


def _not_found(file_id: str) -> ApiError:
    return ApiError(404, f"File with id '{file_id}' not found.", code="file_not_found")
