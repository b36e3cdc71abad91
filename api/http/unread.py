"""Says in an answer that its connection ends, if the answer comes before the end of the request's body."""

from collections.abc import Iterable

from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)


def closing_unread(app: ASGIFramework) -> ASGIFramework:
    """Adds `Connection: close` to answers of HTTP/1 that do not wait for the body, such as a 401.

    Hypercorn closes such a connection. A client that does not know it would send its next request there, and fail.
    """

    async def framework(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http" or not scope["http_version"].startswith("1") or not _has_body(scope["headers"]):
            await app(scope, receive, send)
            return
        is_complete = False

        async def receive_body() -> ASGIReceiveEvent:
            nonlocal is_complete
            event = await receive()
            if event["type"] == "http.request" and not event["more_body"]:
                is_complete = True
            return event

        async def send_answer(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start" and not is_complete:
                event["headers"] = [*event["headers"], (b"connection", b"close")]
            await send(event)

        await app(scope, receive_body, send_answer)

    return framework


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    values = dict(headers)
    return b"transfer-encoding" in values or values.get(b"content-length", b"0") != b"0"
