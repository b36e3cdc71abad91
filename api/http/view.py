"""Quart views of operations: read the request, call the operation's handler, and write its answer."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import orjson
import trio
from quart import Response, g, request
from werkzeug.routing import BaseConverter, Map

from api.engine.deadline import NEVER, Deadline
from api.errors import ApiError
from api.http.access import Access, Caller
from api.http.body import read_body
from api.http.deadlines import HEADER as TIMEOUT_HEADER
from api.http.deadlines import deadline_of
from api.http.operation import Operation, taken
from api.http.resumption import HEADER as RESUME_HEADER
from api.http.resumption import ID_HEADER as STREAM_ID_HEADER
from api.http.resumption import TOO_MANY, wants_resumption
from api.http.uploads import CURRENT as UPLOAD
from api.protocols.answer import Answer
from api.protocols.body import Download, Pieces
from api.protocols.call import Call, EventStream, Reply, Server
from api.protocols.fields import Strict, Wire, parse, parse_query
from api.protocols.warnings import header_value
from api.serving.observer import RequestRecord
from api.serving.tickets import Ticket

_log = logging.getLogger("cortex.api")

INLINE_BYTES: Final = 256 * 1024
"""Bodies up to this size are parsed on the event loop, in a few milliseconds; larger ones in a thread."""


class Segment(BaseConverter):
    """A parameter that is one segment of a path, but none of the `taken` names."""

    def __init__(self, url_map: Map, *taken: str) -> None:
        super().__init__(url_map)
        self.regex = _unless(taken) + "[^/]+"


class Segments(BaseConverter):
    """A parameter that may be several segments of a path, but none of the `taken` names."""

    part_isolating = False
    weight = 200  # werkzeug's for paths: more exact routes are tried first

    def __init__(self, url_map: Map, *taken: str) -> None:
        super().__init__(url_map)
        self.regex = _unless(taken) + "[^/].*?"


def _unless(taken: tuple[str, ...]) -> str:
    return f"(?!(?:{'|'.join(taken)})$)" if taken else ""


def rules(operation: Operation, operations: tuple[Operation, ...]) -> list[str]:
    """The operation's paths in werkzeug's syntax."""
    return [_rule(path, operation, operations) for path in operation.paths]


def _rule(path: str, operation: Operation, operations: tuple[Operation, ...]) -> str:
    for name, parameter in operation.parameters.items():
        converter = "segments" if parameter.has_slashes else "segment"
        names = ", ".join(map(repr, taken(operation, operations))) if path.endswith(f"{{{name}}}") else ""
        path = path.replace(f"{{{name}}}", f"<{converter}({names}):{name}>")
    return path


def view(operation: Operation, server: Server, access: Access) -> Callable[..., Awaitable[Response]]:
    async def respond(**path: str) -> Response:
        record: RequestRecord = g.record
        record.operation = operation.name
        if operation.is_observed:
            server.observers.began(record)
        caller = await access.admit(operation.scope)
        deadline = NEVER
        if operation.is_limited:
            deadline = deadline_of(request.headers.get(TIMEOUT_HEADER), server.request_timeout, record.arrival)
        with trio.CancelScope(deadline=deadline.at):
            return await answered(path, record, caller, deadline)
        raise deadline.error()

    async def answered(path: Mapping[str, str], record: RequestRecord, caller: Caller, deadline: Deadline) -> Response:
        resumable = operation.is_resumable and wants_resumption(request.headers.get(RESUME_HEADER))
        parsed = await _read(operation)
        _note_warnings(parsed.warnings if parsed is not None else [])
        tenant = access.tenant(caller, parsed)
        record.tenant, record.model = tenant.name, server.fleet.own_name(getattr(parsed, "model", None))
        ticket = Ticket()
        if operation.is_limited:
            g.limits = partial(server.limiter.headers, tenant)
            ticket = server.limiter.enter(tenant, parsed.num_sequences, parsed.sequences_field)
            server.tickets.add(record, ticket)
        call = Call(server, parsed, g.request_id, path, tenant, caller.is_owner, record, ticket, UPLOAD.get())
        reply = await operation.handler(call)
        if isinstance(reply, Answer):
            if not parsed.stream:
                return json_response(await reply.whole())
            events = await reply.stream(deadline)
            stream = _resumable(call, events, parsed.warnings) if resumable else EventStream(events)
            return _stream(stream, reply.content_type)
        if isinstance(reply, EventStream):
            return _stream(reply)
        if isinstance(reply, Download):
            return await _download(reply)
        if isinstance(reply, Reply):
            return Response(reply.data, reply.status, dict(reply.headers), content_type=reply.content_type)
        return json_response(reply)

    return respond


def _note_warnings(warnings: Sequence[str]) -> None:
    """Log the request's warnings. The answer gets them as a header, whatever its status."""
    if warnings:
        g.warning = header_value(warnings)
        _log.info("request %s: %s", g.request_id, g.warning)


async def _read(operation: Operation) -> Any:
    """The body or the query, validated. Raises ApiError 400."""
    if operation.query is not None:
        headers = {name: request.headers[name] for name in operation.query.headers if name in request.headers}
        return parse_query(operation.query, request.args.items(multi=True), headers)
    if operation.request is None:
        return None
    data = await read_body(request)
    if len(data) > INLINE_BYTES:
        return await trio.to_thread.run_sync(_parse, data, operation.request)
    return _parse(data, operation.request)


def _parse(data: bytes, model: type[Strict]) -> Strict:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}") from error
    return parse(model, body)


def _resumable(call: Call[Wire], events: AsyncGenerator[bytes], warnings: Sequence[str]) -> EventStream:
    """The events of a request as a stream that can be resumed, if there is room for one more."""
    record, observers = call.record, call.server.observers  # not the call: events stay longer than its request

    def end() -> None:
        observers.ended(record, trio.current_time())

    stream = call.server.streams.open(call.keeper, events, record, end)
    if stream is None:
        _note_warnings([*warnings, TOO_MANY])
        return EventStream(events)
    record.status, record.outlives_response = 200, True
    return EventStream(stream.read(), stream.id)


def _stream(reply: EventStream, content_type: str = Answer.content_type) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    if reply.stream_id is not None:
        headers[STREAM_ID_HEADER] = reply.stream_id
    events = reply.events if request.method != "HEAD" else b""
    response = Response(events, content_type=content_type, headers=headers)
    response.timeout = None  # Quart would end the stream after a minute
    return response


async def _download(reply: Download) -> Response:
    """A browser must neither show it nor guess what it is: it is some client's, and the page's origin is ours."""
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(reply.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    data: Pieces | bytes = reply.data
    if request.method == "HEAD":
        await reply.data.aclose()
        data = b""
    response = Response(data, content_type="application/octet-stream", headers=headers)
    response.content_length = reply.num_bytes
    response.timeout = None  # a slow client may take more than Quart's minute
    return response


def json_response(body: dict[str, Any] | list[dict[str, Any]], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, content_type="application/json")
