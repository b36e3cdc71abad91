"""Operations about files."""

from typing import Final

from api.http.operation import Operation, Parameter
from api.protocols.files import answer as files
from api.protocols.files.request import FileListQuery, FileUpload
from api.protocols.files.types import DeletedFile, FileList, FileObject

FILE_ID: Final = {"file_id": Parameter("The file's id.")}

FILES: Final = (
    Operation(
        "upload_file",
        "POST",
        "/v1/files",
        "Upload a file",
        files.create,
        FileObject,
        form=FileUpload,
        errors=(400, 408, 413, 415, 500, 503, 507),
    ),
    Operation(
        "list_files",
        "GET",
        "/v1/files",
        "The files of the client, latest first",
        files.list_files,
        FileList,
        query=FileListQuery,
        errors=(400, 500, 503),
    ),
    Operation(
        "get_file",
        "GET",
        "/v1/files/{file_id}",
        "A file by its id",
        files.retrieve,
        FileObject,
        errors=(404, 500, 503),
        parameters=FILE_ID,
    ),
    Operation(
        "delete_file",
        "DELETE",
        "/v1/files/{file_id}",
        "Delete a file",
        files.delete,
        DeletedFile,
        errors=(404, 409, 500, 503),
        parameters=FILE_ID,
    ),
    Operation(
        "file_content",
        "GET",
        "/v1/files/{file_id}/content",
        "The bytes of a file",
        files.content,
        is_download=True,
        errors=(404, 500, 503),
        parameters=FILE_ID,
    ),
)
