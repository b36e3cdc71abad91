"""GET /v1/live: what the server does right now."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import orjson

from api.errors import ApiError, unavailable
from api.protocols.call import Call, EventStream
from api.protocols.live.view import rendered
from api.serving.live import INTERVAL, Hub, TooManyFeedsError

PING_SECONDS: Final = 15.0
"""Seconds without an event after which a feed sends a comment, so that proxies keep it open."""
RETRY_SECONDS: Final = 10
PING: Final = b": ping\n\n"


async def watch(call: Call[None]) -> EventStream:
    """Events while something happens. Raises ApiError 503 if too many feeds are open, or while shutting down."""
    if call.server.fleet.draining:
        raise unavailable("The server is shutting down.", "shutting_down")
    hub = call.server.live
    try:
        hub.check_room(call.keeper)
    except TooManyFeedsError as error:
        raise _refused(error) from error
    return EventStream(_events(hub, call.keeper, None if call.sees_details else call.tenant.name))


async def _events(hub: Hub, owner: str, viewer: str | None) -> AsyncGenerator[bytes]:
    """`viewer`: see `rendered`."""
    num_silent = 0
    try:
        async with aclosing(hub.scenes(owner)) as scenes:
            async for scene in scenes:
                num_silent = num_silent + 1 if scene is None else 0
                if scene is not None:
                    data = scene.rendered.get(viewer)
                    if data is None:
                        event = orjson.dumps(rendered(scene, hub.latencies, viewer))
                        data = scene.rendered[viewer] = b"data: %b\n\n" % event
                    yield data
                elif num_silent * INTERVAL >= PING_SECONDS:
                    num_silent = 0
                    yield PING
    except TooManyFeedsError as error:  # another one was faster since the check
        yield b"data: %b\n\n" % orjson.dumps(_refused(error).body())


def _refused(error: TooManyFeedsError) -> ApiError:
    return ApiError(503, str(error), kind="server_error", code="too_many_feeds", retry_after=RETRY_SECONDS)
