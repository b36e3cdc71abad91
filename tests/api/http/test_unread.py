"""Which answers say that their connection ends."""

from typing import Any

import pytest

from api.http.unread import closing_unread

LONG = [(b"content-length", b"4")]


@pytest.mark.parametrize(
    ("version", "headers", "num_reads", "says_close"),
    [
        ("1.1", LONG, 0, True),
        ("1.1", LONG, 1, True),
        ("1.1", LONG, 2, False),
        ("1.1", [(b"transfer-encoding", b"chunked")], 1, True),
        ("1.1", [], 0, False),
        ("1.1", [(b"content-length", b"0")], 0, False),
        ("2", LONG, 0, False),  # its other requests go on
    ],
)
async def test_an_answer_before_the_end_of_the_body_says_that_the_connection_closes(
    version: str, headers: list[tuple[bytes, bytes]], num_reads: int, says_close: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(num_reads):
            await receive()
        await send({"type": "http.response.start", "status": 401, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    events = iter([True, False])
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"xx", "more_body": next(events)}

    async def send(event: Any) -> None:
        sent.append(event)

    scope: Any = {"type": "http", "http_version": version, "headers": headers}
    await closing_unread(app)(scope, receive, send)
    assert sent[0]["headers"] == [(b"a", b"b")] + [(b"connection", b"close")] * says_close
    assert sent[1]["type"] == "http.response.body"
