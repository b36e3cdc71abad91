"""Adapts the app to what Hypercorn and quart-trio do together."""

from typing import Final

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from api.http.sockets import UNACKNOWLEDGED_LIMIT

UNIX_CLIENT: Final = ("unix", 0)
"""The address of clients that connect over a Unix socket. They are one tenant, unless they name users or have keys."""


def adapted(app: ASGIFramework) -> ASGIFramework:
    """Gives clients of Unix sockets an address, limits the time of each send, and shields the last one of a response.

    During the last send Hypercorn reports the end of the request to the app. quart-trio then cancels the task that
    sends. Without the shield, Hypercorn would never mark the connection as idle. Neither a timeout nor the end of the
    server would close it.

    An HTTP/2 client can accept no data for as long as it likes, and the kernel does not notice. A send that has taken
    its time ends; its data stays in the connection's buffer. Then the response ends, and the connection is idle.
    """

    async def framework(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["client"] is None:
            scope["client"] = UNIX_CLIENT

        has_flow_control = scope["type"] == "http" and not scope["http_version"].startswith("1")

        async def send_in_time(event: ASGISendEvent) -> None:
            is_last = event["type"] == "http.response.body" and not event.get("more_body", False)
            if not is_last and not has_flow_control:  # most sends; the kernel limits their time
                await send(event)
                return
            with trio.CancelScope(shield=is_last, deadline=trio.current_time() + UNACKNOWLEDGED_LIMIT):
                await send(event)

        await app(scope, receive, send_in_time)

    return framework
