"""Events are decoded from bytes that are cut anywhere."""

from collections.abc import Sequence

import pytest

from bench import sse
from bench.sse import SSEDecoder

STREAM = (
    "\ufeff: ping\n\ndata: zwölf 🦙\r\n\r\nid: 7\nevent: x\ndata:one\ndata:  two\n\ndata\n\n:\ndata: {}\r\r".encode()
)
EVENTS = ["zwölf 🦙".encode(), b"one\n two", b"{}"]


def decode(pieces: Sequence[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


def test_comments_other_fields_and_events_without_data_are_not_events() -> None:
    assert decode([STREAM + b"\n"]) == EVENTS


def test_a_read_may_end_anywhere() -> None:
    whole = STREAM + b"\n"
    for cut in range(len(whole) + 1):
        assert decode([whole[:cut], whole[cut:]]) == EVENTS, cut
    assert decode([bytes([byte]) for byte in whole]) == EVENTS


def test_an_event_is_returned_with_the_read_that_completes_it() -> None:
    decoder = SSEDecoder()
    assert list(decoder.feed(b"data: a\n\ndata: b\n")) == [b"a"]
    assert list(decoder.feed(b"\n")) == [b"b"]


def test_an_incomplete_event_is_not_returned() -> None:
    assert decode([b"data: a\n\ndata: half\n"]) == [b"a"]


def test_an_event_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        decode([b"data: ", b"x" * 60, b"y" * 60])
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        decode([b"data: 0123456789\n" * 20])
