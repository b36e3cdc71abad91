"""Reads the multipart form of an upload, and writes its file to the disk while it arrives."""

from collections.abc import Callable
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from api.errors import ApiError
from api.protocols.fields import parse
from api.protocols.files.request import MAX_FILE_BYTES, FileForm
from api.storage.files import StoredFile, Upload

MAX_VALUE_BYTES: Final = 1_024
MAX_NAME_BYTES: Final = 1_024
MAX_PARTS: Final = 16

Begin = Callable[[str], Upload]
"""Begins the file with this name."""


def too_large() -> ApiError:
    return ApiError(413, f"The file has more than {MAX_FILE_BYTES} bytes.", param="file", code="request_too_large")


class FileReceiver:
    """Takes the body of an upload in pieces. All methods may block for the disk, and must be called in one thread at a
    time. All raise ApiError for an invalid form and StorageError for the disk.
    """

    def __init__(self, content_type: str, begin: Begin) -> None:
        """Raises ApiError 415 unless the body is a multipart form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            message = "The request body must be multipart/form-data with a boundary."
            raise ApiError(415, message, code="unsupported_media_type")
        self._begin = begin
        self._upload: Upload | None = None
        self._values: dict[str, bytearray] = {}
        self._num_parts = 0
        self._name = ""
        """Of the current part."""
        self._is_over = False
        self._header = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
                max_header_size=MAX_NAME_BYTES * 4,
            )
        except FormParserError as error:
            raise _invalid(str(error)) from error

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid(str(error)) from error

    def finish(self) -> StoredFile:
        """The file, after the whole body."""
        if not self._is_over:
            raise _invalid("its last boundary is missing")
        if self._upload is None:
            raise _missing("file")
        form = self._form()
        self._upload.purpose, self._upload.expires_after = form.purpose, form.expires_after
        return self._upload.finish()

    def abort(self) -> None:
        """Remove what was written, unless the file is finished."""
        if self._upload is not None:
            self._upload.abort()

    def _form(self) -> FileForm:
        values = {name: value.decode(errors="replace") for name, value in self._values.items()}
        return parse(FileForm, values)

    # -- what the parser finds

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise _invalid(f"it has more than {MAX_PARTS} parts")
        self._headers.clear()

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _invalid("a part has no name")
        self._name = options[b"name"].decode(errors="replace")
        filename = options.get(b"filename")
        if self._name in self._values or (self._name == "file" and self._upload is not None):
            raise ApiError(400, f"{self._name!r} is given twice.", param=self._name, code="invalid_value")
        if self._name != "file":
            self._values[self._name] = bytearray()
        elif filename is None:
            raise ApiError(400, "'file' must be a file with a name.", param="file", code="invalid_value")
        else:
            if "purpose" in self._values:
                self._form()  # refuse what is invalid before the file arrives
            self._upload = self._begin(filename.decode(errors="replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            assert self._upload is not None
            if self._upload.num_bytes + end - start > MAX_FILE_BYTES:
                raise too_large()
            self._upload.write(data[start:end])
            return
        value = self._values[self._name]
        value += data[start:end]
        if len(value) > MAX_VALUE_BYTES:
            message = f"Invalid value for {self._name!r}: it is too long."
            raise ApiError(400, message, param=self._name, code="invalid_value")

    def _on_end(self) -> None:
        self._is_over = True


def _invalid(reason: str) -> ApiError:
    return ApiError(400, f"The form cannot be read: {reason}.", code="invalid_value")


def _missing(name: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
