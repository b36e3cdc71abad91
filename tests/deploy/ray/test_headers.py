"""Which headers a proxy passes on."""

from deploy.ray.headers import end_to_end, first


def test_headers_of_the_connection_are_dropped() -> None:
    headers = [
        (b"Authorization", b"Bearer key"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"Keep-Alive", b"5"),
        (b"X-Hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"TE", b"trailers"),
        (b"x-api-key", b"key"),
    ]
    assert end_to_end(headers) == ((b"authorization", b"Bearer key"), (b"x-api-key", b"key"))


def test_repeated_headers_stay_in_their_order() -> None:
    headers = ((b"set-cookie", b"a=1"), (b"x", b"y"), (b"set-cookie", b"b=2"))
    assert end_to_end(headers) == headers


def test_more_headers_can_be_dropped() -> None:
    assert end_to_end([(b"Content-Length", b"3"), (b"x", b"y")], (b"content-length",)) == ((b"x", b"y"),)


def test_names_are_found_in_any_case() -> None:
    assert first([(b"X-Key", b"1"), (b"x-key", b"2")], b"x-key") == b"1"
    assert first([], b"x-key") is None
