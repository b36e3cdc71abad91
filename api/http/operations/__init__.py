"""The table of operations. Routes, 405s, access checks, OpenAPI and the README's table of endpoints come from it."""

from functools import cache
from typing import Final

import orjson
import trio

from api.http import openapi, page_files
from api.http.operation import Operation, Parameter, Scope
from api.http.operations.batches import BATCHES
from api.http.operations.files import FILES
from api.http.operations.generation import GENERATION
from api.http.operations.models import MODELS
from api.http.operations.ollama import OLLAMA
from api.http.operations.prompts import PROMPTS
from api.http.operations.watching import WATCHING
from api.protocols.batches.work import Endpoint
from api.protocols.call import Call, Reply


@cache
def _openapi_document() -> Reply:
    return Reply(orjson.dumps(openapi.document(OPERATIONS)))


@cache
def _page() -> Reply:
    return Reply(openapi.page(OPERATIONS).encode(), content_type="text/html; charset=utf-8")


async def _describe(call: Call[None]) -> Reply:  # noqa: ARG001 - it is the same for all calls
    return await trio.to_thread.run_sync(_openapi_document)  # the first call takes about 0.1 s


async def _docs(call: Call[None]) -> Reply:  # noqa: ARG001
    return await trio.to_thread.run_sync(_page)


OPERATIONS: Final = (
    *GENERATION,
    *BATCHES,
    *OLLAMA,
    *FILES,
    *MODELS,
    *PROMPTS,
    *WATCHING,
    Operation(
        "openapi",
        "GET",
        "/openapi.json",
        "The OpenAPI document of this API",
        _describe,
        scope=Scope.PUBLIC,
    ),
    Operation("page", "GET", "/", "The web page, to chat and to watch the server", page_files.page, scope=Scope.PUBLIC),
    Operation(
        "page_file",
        "GET",
        "/assets/{file}",
        "A file of the web page",
        page_files.asset,
        errors=(404,),
        parameters={"file": Parameter("The file's name.")},
        scope=Scope.PUBLIC,
    ),
    Operation("docs", "GET", "/docs", "The documentation of this API as a web page", _docs, scope=Scope.PUBLIC),
)

_FIXED: Final[dict[str, dict[str, object]]] = {"/v1/responses": {"store": False}}
"""Fields of the lines of batches. There is room for 1024 stored responses: a batch would drop those of others."""
_BATCH_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
BATCH_ENDPOINTS: Final = {
    each.path: Endpoint(each.name, each.request, each.handler, _FIXED.get(each.path, {}))
    for each in OPERATIONS
    if each.path in _BATCH_PATHS and each.method == "POST" and each.request is not None
}
"""The operations that lines of batches may call, by their paths."""
