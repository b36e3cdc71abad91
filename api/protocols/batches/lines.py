"""The input file of a batch: reads it line by line, finds what is wrong with it, and orders its lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final
from zlib import crc32

import orjson

from api.storage.batch import InputError, Line

MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 32 * 1024 * 1024
"""As many as the body of a request may have."""
MAX_ID_LENGTH: Final = 512
MAX_ERRORS: Final = 100
"""Errors that a batch reports. The file is not read any further then."""
BLOCK: Final = 128
"""Bytes of a prompt that are compared as one. A prompt of 32 MiB then has a key of 1 MiB."""
_BEGINNING: Final = ("tools", "functions", "instructions", "messages", "prompt", "input")
"""The fields that make a prompt, in the order in which templates write them."""


class InvalidLineError(Exception):
    """A line cannot be used."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class _Found:
    """A line before its place in the order of execution is known."""

    line: int
    custom_id: str
    start: int
    size: int
    model: str
    key: bytes


class InputIndex:
    """What an input file holds. `read` until it returns False; then there are errors or lines."""

    def __init__(self, file: IO[bytes], endpoint: str, *, max_lines: int = MAX_LINES) -> None:
        self.errors: list[InputError] = []
        self._file = file
        self._endpoint = endpoint
        self._max_lines = max_lines
        self._num_read = 0
        """Lines that were read, empty ones included."""
        self._found: list[_Found] = []
        self._ids: dict[str, int] = {}
        """The lines of all custom ids."""

    def read(self, num_bytes: int) -> bool:
        """Read about so many bytes. Returns whether there may be more."""
        until = self._file.tell() + num_bytes
        while (start := self._file.tell()) < until:
            data = self._file.readline(MAX_LINE_BYTES + 1)
            if not data:
                self._check_number()
                return False
            self._num_read += 1
            if data.strip():
                self._add(start, data)
            if len(self.errors) >= MAX_ERRORS or len(self._found) > self._max_lines:
                self._check_number()
                return False
        return True

    @property
    def models(self) -> list[str]:
        """The models that the lines name, each once."""
        return sorted({each.model for each in self._found})

    def lines(self) -> list[Line]:
        """The lines in the order of execution: lines with equal beginnings are next to each other."""
        groups = {model: number for number, model in enumerate(self.models)}
        ordered = sorted(self._found, key=lambda each: (each.model, each.key, each.line))
        return [
            Line(each.line, each.custom_id, each.start, each.size, groups[each.model], place)
            for place, each in enumerate(ordered)
        ]

    def _add(self, start: int, data: bytes) -> None:
        try:
            self._check_length(data)
            custom_id, body = checked(data, self._endpoint)
            self._check_new(custom_id)
        except InvalidLineError as error:
            self.errors.append(InputError(error.code, str(error), error.param, self._num_read))
            return
        model = body.get("model")
        name = model if isinstance(model, str) else ""
        self._found.append(_Found(self._num_read, custom_id, start, len(data), name, beginning(body)))

    def _check_new(self, custom_id: str) -> None:
        first = self._ids.setdefault(custom_id, self._num_read)
        if first != self._num_read:
            message = f"The custom_id {custom_id!r} is a duplicate of the one in line {first}."
            raise InvalidLineError("duplicate_custom_id", message, "custom_id")

    def _check_length(self, data: bytes) -> None:
        if len(data) <= MAX_LINE_BYTES:
            return
        while (rest := self._file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        raise InvalidLineError("invalid_request", f"This line has more than {MAX_LINE_BYTES} bytes.")

    def _check_number(self) -> None:
        if len(self._found) > self._max_lines:
            message = f"The file has more than {self._max_lines} requests. Split it into several batches."
            self.errors.append(InputError("too_many_tasks", message))
        elif not self._found and not self.errors:
            self.errors.append(InputError("empty_file", "The file has no requests."))


def checked(data: bytes, endpoint: str) -> tuple[str, dict[str, Any]]:
    """The custom id and the body of a line. Raises InvalidLineError."""
    try:
        line = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidLineError("invalid_json_line", f"This line is not parseable as valid JSON: {error}.") from error
    if not isinstance(line, dict):
        raise InvalidLineError("invalid_request", "This line is not a JSON object.")
    custom_id, method, url, body = (_field(line, name) for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_LENGTH:
        message = f"'custom_id' must be a string of 1 to {MAX_ID_LENGTH} characters."
        raise InvalidLineError("invalid_request", message, "custom_id")
    if method != "POST":
        raise InvalidLineError("invalid_method", "The method of a request must be 'POST'.", "method")
    if url != endpoint:
        message = f"The URL of this request does not match the endpoint of the batch, {endpoint!r}."
        raise InvalidLineError("invalid_url", message, "url")
    if not isinstance(body, dict):
        raise InvalidLineError("invalid_request", "'body' must be a JSON object.", "body")
    return custom_id, body


def _field(line: Mapping[str, Any], name: str) -> Any:
    if line.get(name) is None:
        raise InvalidLineError("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    return line[name]


def beginning(body: Mapping[str, Any]) -> bytes:
    """A key of a prompt. Prompts with an equal beginning have keys with an equal beginning.

    A checksum stands for each BLOCK of bytes, so that the keys of a whole file fit into memory. Two different blocks
    with the same checksum only place a line where it shares less.
    """
    text = b"".join(orjson.dumps(body[name]) for name in _BEGINNING if body.get(name) is not None)
    return b"".join(crc32(text[at : at + BLOCK]).to_bytes(4, "big") for at in range(0, len(text), BLOCK))
