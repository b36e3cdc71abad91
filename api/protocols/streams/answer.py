"""GET /v1/streams/{stream_id}: the rest of a stream."""

from api.errors import ApiError
from api.protocols.call import Call, EventStream
from api.protocols.resumable import HOLD_SECONDS
from api.protocols.streams.request import StreamQuery


async def resume(call: Call[StreamQuery]) -> EventStream:
    """The events that the client has not got, from those that are kept to the end of the stream.

    Raises ApiError 404 if the caller has no such stream, 400 or 410 if it cannot go on from this event.
    """
    stream_id = call.path["stream_id"]
    stream = call.server.streams.find(call.keeper, stream_id)
    if stream is None:
        message = f"Stream with id '{stream_id}' not found. A stream is kept for {HOLD_SECONDS:g} s without a reader."
        raise ApiError(404, message, code="stream_not_found")
    return EventStream(stream.read(call.request.last_seen), stream.id)
