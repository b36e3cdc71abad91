"""The HTTP application: routes, errors, request ids."""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import orjson
import trio
from quart import Response, g, request
from quart_cors import cors
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, PathConverter

from api import package_version
from api.errors import ApiError, server_error
from api.http import openapi
from api.protocols.answer import Answer
from api.protocols.chat.answer import ChatCompletion
from api.protocols.chat.request import parse_chat_request
from api.protocols.completions.answer import TextCompletion
from api.protocols.completions.request import parse_completion_request
from api.protocols.embeddings.answer import embed
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.fields import parse
from api.protocols.management import answer as management
from api.protocols.management.answer import is_same_machine
from api.protocols.management.request import StartRequest, StopRequest
from api.protocols.messages import answer as messages
from api.protocols.messages.answer import MessageAnswer
from api.protocols.messages.request import parse_count_tokens_request, parse_messages_request
from api.protocols.responses import answer as responses
from api.protocols.responses.answer import ModelResponse
from api.protocols.responses.request import (
    ListQuery,
    RetrieveQuery,
    parse_input_tokens_request,
    parse_query,
    parse_response_request,
)
from api.protocols.responses.store import KeptResponses
from api.protocols.tokens import answer as tokens
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from api.serving.fleet import Fleet
from api.serving.model import Slot

_log = logging.getLogger("cortex.api")

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
INLINE_BYTES: Final = 256 * 1024
"""Bodies up to this size are read on the event loop, in milliseconds; larger ones in a thread."""
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

AskedT = TypeVar("AskedT")


class _ModelName(PathConverter):
    """Whatever may be a model's name, slashes included, but what is called on models."""

    regex = "(?!(?:start|stop)$)[^/].*?"


class _ResponseId(BaseConverter):
    """Whatever may be a response's id, but what is called on responses."""

    regex = "(?!input_tokens$)[^/]+"


def create_app(fleet: Fleet, *, cors_origins: tuple[str, ...] = ()) -> QuartTrio:
    """The API of these models."""
    app = QuartTrio("cortex")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.converters |= {"model": _ModelName, "response": _ResponseId}
    if cors_origins:
        app = cors(app, allow_origin=list(cors_origins), expose_headers=["x-request-id", "request-id"])
    started = time.monotonic()
    kept = KeptResponses()

    @app.before_request
    async def name_request() -> None:
        given = request.headers.get("x-request-id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"

    @app.after_request
    async def tell_request_id(response: Response) -> Response:
        response.headers["x-request-id"] = g.request_id
        if messages.is_ours(request.path):
            response.headers["request-id"] = g.request_id
        return response

    @app.errorhandler(ApiError)
    async def refuse(error: ApiError) -> Response:
        response = _refusal(error)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.errorhandler(HTTPException)
    async def refuse_http(error: HTTPException) -> Response:
        response = _refusal(_from_http(error))
        for name, value in error.get_headers():
            if name.lower() != "content-type":
                response.headers[name] = value
        return response

    @app.errorhandler(RecursionError)
    async def refuse_depth(error: RecursionError) -> Response:  # noqa: ARG001 - it says nothing to a client
        return _refusal(ApiError(400, "The request body is nested too deeply.", code="invalid_value"))

    @app.errorhandler(Exception)
    async def fail(error: Exception) -> Response:
        _log.error("request %s failed", g.get("request_id"), exc_info=error)
        return _refusal(server_error("The server had an error while processing your request."))

    @app.get("/openapi.json")
    async def openapi_document() -> Response:
        return _json(openapi.document())

    @app.get("/docs")
    async def docs() -> Response:
        return Response(openapi.page(), content_type="text/html; charset=utf-8")

    @app.get("/healthz")
    async def health() -> Response:
        body = await fleet.health() | {
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - started, 3),
            "version": package_version(),
        }
        if not _is_local():  # where files lie is nobody else's business
            body["models"] = [model | {"path": None} for model in body["models"]]
        return _json(body, 200 if body["status"] == "ok" else 503)

    @app.get("/v1/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": [_model(slot, name) for slot in fleet.slots for name in slot.names]})

    @app.get("/v1/models/<model:name>")
    async def get_model(name: str) -> Response:
        return _json(_model(fleet.slot(name), name))

    @app.post("/v1/models/start")
    async def start_model() -> Response:
        _require_owner()
        slot = await management.start(fleet, await _asked(partial(parse, StartRequest)))
        return _json(_model(slot, slot.names[0]))

    @app.post("/v1/models/stop")
    async def stop_model() -> Response:
        _require_owner()
        slot = await management.stop(fleet, await _asked(partial(parse, StopRequest)))
        return _json(_model(slot, slot.names[0]))

    @app.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        chat = await _asked(parse_chat_request)
        service = await fleet.accepting(chat.model)
        return await _respond(await ChatCompletion.create(service, chat), stream=chat.stream)

    @app.post("/v1/completions")
    async def completions() -> Response:
        completion = await _asked(parse_completion_request)
        service = await fleet.accepting(completion.model)
        return await _respond(await TextCompletion.create(service, completion), stream=completion.stream)

    @app.post(messages.PATH)
    async def create_message() -> Response:
        asked = await _asked(parse_messages_request)
        service = await fleet.accepting(asked.model)
        return await _respond(await MessageAnswer.create(service, asked, g.request_id), stream=asked.stream)

    @app.post(f"{messages.PATH}/count_tokens")
    async def count_tokens() -> Response:
        asked = await _asked(parse_count_tokens_request)
        return _json(await messages.count_tokens(await fleet.service(asked.model), asked))

    @app.post("/v1/responses")
    async def create_response() -> Response:
        asked = await _asked(parse_response_request)
        service = await fleet.accepting(asked.model)
        return await _respond(await ModelResponse.create(service, asked, kept), stream=asked.stream)

    @app.post("/v1/responses/input_tokens")
    async def count_input_tokens() -> Response:
        asked = await _asked(parse_input_tokens_request)
        return _json(await responses.count_input(await fleet.service(asked.model), asked, kept))

    @app.get("/v1/responses/<response:response_id>")
    async def get_response(response_id: str) -> Response:
        query = parse_query(RetrieveQuery, request.args.items(multi=True))
        return _json(responses.retrieve(kept, response_id, query))

    @app.delete("/v1/responses/<response:response_id>")
    async def delete_response(response_id: str) -> Response:
        return _json(responses.delete(kept, response_id))

    @app.get("/v1/responses/<response:response_id>/input_items")
    async def list_input_items(response_id: str) -> Response:
        query = parse_query(ListQuery, request.args.items(multi=True))
        return _json(responses.list_input(kept, response_id, query))

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        request = await _asked(partial(parse, EmbeddingsRequest))
        return _json(await embed(await fleet.accepting(request.model, embeds=True), request))

    @app.post("/tokenize")
    async def tokenize() -> Response:
        request = await _asked(partial(parse, TokenizeRequest))
        return _json(await tokens.tokenize(await fleet.service(request.model), request))

    @app.post("/detokenize")
    async def detokenize() -> Response:
        request = await _asked(partial(parse, DetokenizeRequest))
        return _json(tokens.detokenize(await fleet.service(request.model), request))

    @app.post("/apply-template")
    async def apply_template() -> Response:
        request = await _asked(partial(parse, ApplyTemplateRequest))
        return _json(await tokens.apply_template(await fleet.service(request.model), request))

    return app


async def _respond(answer: Answer, *, stream: bool | None) -> Response:
    if not stream:
        return _json(await answer.whole())
    response = Response(
        await answer.stream(),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.timeout = None  # Quart would end the stream after a minute
    return response


async def _asked(parse: Callable[[Any], AskedT]) -> AskedT:
    """What the body of the request says. Raises ApiError 400 for what is no JSON, and whatever `parse` raises."""
    data = await request.get_data(cache=False)
    if len(data) > INLINE_BYTES:
        return await trio.to_thread.run_sync(_read, data, parse)
    return _read(data, parse)


def _read(data: str | bytes, parse: Callable[[Any], AskedT]) -> AskedT:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}") from error
    return parse(body)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, content_type="application/json")


def _refusal(error: ApiError) -> Response:
    return _json(
        messages.error_body(error, g.request_id) if messages.is_ours(request.path) else error.body(), error.status
    )


def _model(slot: Slot, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": slot.created, "owned_by": "cortex", "status": slot.status}


def _is_local() -> bool:
    own = request.scope.get("server")
    return is_same_machine(request.remote_addr, own[0] if own else None)


def _require_owner() -> None:
    """Models come and go by the word of who is on this machine, of no web page that such a one looks at, and of nobody
    who comes by a proxy, which is on this machine for all.

    Raises ApiError 403, 415.
    """
    if request.mimetype != "application/json":  # which a page of another origin cannot send unasked
        raise ApiError(415, "The request body must be application/json.", code="unsupported_media_type")
    if not _is_local() or any(name in request.headers for name in ("Origin", "Forwarded", "X-Forwarded-For")):
        raise ApiError(403, "Models are started and stopped from the server's own machine only.", code="forbidden")


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
