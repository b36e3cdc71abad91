"""A decoder of server-sent events: bytes in, the data of complete events out."""

from collections.abc import Iterator

MAX_EVENT_BYTES = 8 << 20


class SSEDecoder:
    """Splits bytes, so a read may end anywhere: inside a line, a UTF-8 character or a CRLF."""

    def __init__(self) -> None:
        self._partial = b""
        self._data: list[bytes] = []
        self._at_start = True

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of each event that these bytes complete; events without data yield nothing.

        Raises ValueError if an event is larger than MAX_EVENT_BYTES.
        """
        lines = (self._partial + received).splitlines(keepends=True)
        # A line that ends in a bare CR may be the first half of a CRLF, so it waits as well.
        self._partial = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            yield from self._take(line.rstrip(b"\r\n"))
        if len(self._partial) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is larger than {MAX_EVENT_BYTES} bytes")

    def _take(self, line: bytes) -> Iterator[bytes]:
        if self._at_start:
            line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            data, self._data = b"\n".join(self._data), []
            if data:
                yield data
            return
        field, _, value = line.partition(b":")  # a comment has an empty field name
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
