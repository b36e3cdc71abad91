"""Headers that a proxy passes on: all except those that belong to one connection."""

from collections.abc import Iterable
from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

# RFC 9110, section 7.6.1. `Expect` is answered by the server that reads the body.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Ray Serve's own server writes them too.
WRITTEN_BY_SERVE: Final = frozenset({b"date", b"server"})


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of the first header of this name, which is in lower case."""
    return next((value for each, value in headers if each.lower() == name), None)


def end_to_end(headers: Iterable[tuple[bytes, bytes]], without: Iterable[bytes] = ()) -> Headers:
    """The headers that belong to the message, in lower case and in their order. `Connection` may name more to drop."""
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | set(without)
    for name, value in pairs:
        if name == b"connection":
            dropped |= {option.strip().lower() for option in value.split(b",")}
    return tuple((name, value) for name, value in pairs if name not in dropped)
