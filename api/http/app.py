"""The HTTP application: a route for each operation, errors, request ids."""

import logging
import re
import time
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, g, request
from quart_cors import cors
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from api.errors import ApiError, server_error
from api.flags import CacheScope
from api.http.access import Access
from api.http.body import MAX_BODY_BYTES
from api.http.operations import OPERATIONS
from api.http.resumption import ID_HEADER
from api.http.unread import closing_unread
from api.http.uploads import paced
from api.http.view import Segment, Segments, json_response, rules, view
from api.protocols.call import NO_STORAGE, Server
from api.protocols.messages import answer as messages
from api.protocols.ollama import errors as ollama
from api.protocols.resumable import ResumableStreams
from api.protocols.storing import refusal
from api.protocols.warnings import HEADER
from api.serving import limits
from api.serving.fleet import Fleet
from api.serving.limits import Limiter
from api.serving.live import Hub
from api.serving.observer import CURRENT, Observers, RequestRecord
from api.storage.errors import StorageError
from api.storage.storage import Storage

_log = logging.getLogger("cortex.api")

EXPOSED: Final = ["x-request-id", "request-id", HEADER, "retry-after", ID_HEADER.lower(), *limits.HEADERS]
"""The headers that a web page of another origin may read."""
_EXTENSION: Final = "cortex"
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    fleet: Fleet,
    *,
    cors_origins: tuple[str, ...] = (),
    model_flags: Mapping[str, object] = MappingProxyType({}),
    observers: Observers | None = None,
    limiter: Limiter | None = None,
    cache_scope: CacheScope = "server",
    request_timeout: float = 0.0,
    access: Access | None = None,
    streams: ResumableStreams | None = None,
    live: Hub | None = None,
    storage: Storage | str = NO_STORAGE,
) -> QuartTrio:
    """The application for these models. `model_flags`: defaults for the flags of models that a request starts.

    `observers` get each request. `request_timeout`: seconds for a request that sets none; 0 for no limit. `access`: by
    default no keys are demanded, and nobody can start or stop models. `streams`: they run while its `run` runs.
    `storage`: files and batches, or the reason why there are none.
    """
    app = QuartTrio("cortex")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.converters |= {"segment": Segment, "segments": Segments}
    if cors_origins:
        app = cors(app, allow_origin=list(cors_origins), expose_headers=EXPOSED)
    access = access or Access()
    server = Server(
        fleet,
        time.monotonic(),
        live or Hub(fleet, by_tenant=access.demands_keys),
        model_flags,
        observers=observers or Observers(),
        limiter=limiter or Limiter(),
        cache_scope=cache_scope,
        request_timeout=request_timeout,
        demands_keys=access.demands_keys,
        streams=streams or ResumableStreams(),
        storage=storage,
    )
    app.extensions[_EXTENSION] = server
    server.observers.add(server.tickets)
    _name_requests(app, fleet)
    _handle_errors(app)
    server.observers.add(server.metrics.requests)
    server.observers.add(server.live.latencies)
    app.asgi_app = _recorded(closing_unread(paced(app.asgi_app, _is_upload)), server.observers)  # type: ignore[method-assign, assignment]
    for each in OPERATIONS:
        respond = view(each, server, access)
        for rule in rules(each, OPERATIONS):
            app.add_url_rule(rule, each.name, respond, methods=[each.method])
    return app


def _is_upload(method: str, path: str) -> bool:
    return any(each.form and each.method == method and path in each.paths for each in OPERATIONS)


def server_of(app: QuartTrio) -> Server:
    """What the operations of an application share."""
    server: Server = app.extensions[_EXTENSION]
    return server


def _recorded(app: ASGIFramework, observers: Observers) -> ASGIFramework:
    """Gives each request a record, which ends with the request: after its last byte, or when its client has left. Only
    the record of a stream that can be resumed may end later.
    """

    async def framework(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        record = RequestRecord(arrived_at=time.time(), arrival=trio.current_time())
        CURRENT.set(record)
        try:
            await app(scope, receive, send)
        finally:
            if not record.outlives_response:
                observers.ended(record, trio.current_time())

    return framework


def _name_requests(app: QuartTrio, fleet: Fleet) -> None:
    @app.before_request
    async def name_request() -> None:
        given = request.headers.get("x-request-id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        g.record = CURRENT.get() or RequestRecord()
        g.record.request_id = g.request_id
        g.record.traceparent = request.headers.get("traceparent", "")
        g.record.tracestate = request.headers.get("tracestate", "")

    @app.after_request
    async def return_request_id(response: Response) -> Response:
        if response.location is not None:  # of a URL with two slashes; behind a proxy, its scheme would be wrong
            place = urlsplit(response.location)
            response = Response("", response.status_code)
            response.location = urlunsplit(("", "", place.path, place.query, ""))
        response.headers["x-request-id"] = g.request_id
        if messages.is_ours(request.path):
            response.headers["request-id"] = g.request_id
        if "warning" in g:
            response.headers[HEADER] = g.warning
        if fleet.draining and request.http_version.startswith("1"):  # clients then send the next request elsewhere
            response.headers["Connection"] = "close"
        if "limits" in g:
            response.headers.update(g.limits())
        g.record.status = response.status_code
        return response


def _handle_errors(app: QuartTrio) -> None:
    @app.errorhandler(ApiError)
    async def refuse(error: ApiError) -> Response:
        response = _refusal(error)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        if error.should_retry is not None:  # OpenAI's and Anthropic's SDKs read it
            response.headers["x-should-retry"] = str(error.should_retry).lower()
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(StorageError)
    async def refuse_storage(error: StorageError) -> Response:
        refused = refusal(error)
        if refused.status == 500:
            _log.error("request %s failed: %s", g.request_id, error)
        return await refuse(refused)

    @app.errorhandler(HTTPException)
    async def refuse_http(error: HTTPException) -> Response:
        response = _refusal(_from_http(error))
        for name, value in error.get_headers():
            if name.lower() != "content-type":
                response.headers[name] = value
        return response

    @app.errorhandler(RecursionError)
    async def refuse_depth(error: RecursionError) -> Response:  # noqa: ARG001 - its text is of no use to a client
        return _refusal(ApiError(400, "The request body is nested too deeply.", code="invalid_value"))

    @app.errorhandler(Exception)
    async def fail(error: Exception) -> Response:
        _log.error("request %s failed", g.get("request_id"), exc_info=error)
        return _refusal(server_error("The server had an error while processing your request."))


def _refusal(error: ApiError) -> Response:
    g.record.error = error.code or ""
    return json_response(_error_body(error), error.status)


def _error_body(error: ApiError) -> dict[str, Any]:
    """The error in the form of the API to which the URL's path belongs."""
    if messages.is_ours(request.path):
        return messages.error_body(error, g.request_id)
    return ollama.error_body(error) if ollama.is_ours(request.path) else error.body()


def _from_http(error: HTTPException) -> ApiError:
    status = error.code or 500
    match status:
        case 404:
            return ApiError(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")
        case 405:
            return ApiError(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_allowed")
        case 413:
            return ApiError(413, f"The request body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
    return ApiError(status, error.description or error.name, code=error.name.lower().replace(" ", "_"))
