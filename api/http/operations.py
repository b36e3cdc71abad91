"""The table of operations. Routes, 405s, access checks, OpenAPI and the README's table of endpoints come from it."""

from functools import cache
from typing import Final

import orjson
import trio

from api.http import openapi, page_files
from api.http.operation import Operation, Parameter, Scope
from api.protocols.batches import answer as batches
from api.protocols.batches.request import BatchListQuery, BatchRequest
from api.protocols.batches.types import Batch, BatchList
from api.protocols.batches.work import Endpoint
from api.protocols.call import Call, Reply
from api.protocols.chat import answer as chat
from api.protocols.chat.request import ChatRequest
from api.protocols.chat.types import ChatCompletion, ChatCompletionChunk
from api.protocols.completions import answer as completions
from api.protocols.completions.request import CompletionRequest
from api.protocols.completions.types import TextCompletion, TextCompletionChunk
from api.protocols.embeddings import answer as embeddings
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.embeddings.types import Embeddings
from api.protocols.files import answer as files
from api.protocols.files.request import FileListQuery, FileUpload
from api.protocols.files.types import DeletedFile, FileList, FileObject
from api.protocols.live import answer as live
from api.protocols.live.types import LiveEvent
from api.protocols.management import answer as management
from api.protocols.management import health, metrics, models, version
from api.protocols.management.request import LoadsQuery, StartRequest, StopRequest
from api.protocols.management.types import Health, Loads, Model, ModelList, Readiness, Ready
from api.protocols.messages import answer as messages
from api.protocols.messages.request import CountTokensRequest, MessagesRequest
from api.protocols.messages.types import MessageAnswer, MessageError, MessageEvent, TokenCount
from api.protocols.ollama import answer as ollama
from api.protocols.ollama import embeddings as ollama_embeddings
from api.protocols.ollama import models as ollama_models
from api.protocols.ollama import types as ollama_answers
from api.protocols.ollama.request import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from api.protocols.rendered import RenderedRequest, RenderedRequests
from api.protocols.rerank import answer as rerank
from api.protocols.rerank.request import RerankRequest
from api.protocols.rerank.types import Ranking
from api.protocols.responses import answer as responses
from api.protocols.responses import kept
from api.protocols.responses.request import InputTokensRequest, ListQuery, ResponseRequest, RetrieveQuery
from api.protocols.responses.types import DeletedResponse, InputTokens, Response, ResponseEvent, ResponseItems
from api.protocols.streams import answer as streams
from api.protocols.streams.request import StreamQuery
from api.protocols.tokens import answer as tokens
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from api.protocols.tokens.types import RenderedPrompt, Text, Tokens
from api.protocols.types import AnyAnswer

GENERATES: Final = (400, 403, 404, 413, 429, 500, 503, 504)
READS: Final = (400, 403, 404, 413, 503)
RESPONSE_ID: Final = {"response_id": Parameter("The response's id.")}
FILE_ID: Final = {"file_id": Parameter("The file's id.")}
STREAM_ID: Final = {"stream_id": Parameter("The stream's id, from the header `X-Stream-Id` of the answer.")}
BATCH_ID: Final = {"batch_id": Parameter("The batch's id.")}
MODEL_NAME: Final = {"name": Parameter("The model's name.", has_slashes=True)}


class StreamEvent(AnyAnswer[ChatCompletionChunk | TextCompletionChunk | MessageEvent | ResponseEvent | MessageError]):
    """One event of a resumed stream, as its endpoint sends it."""


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
    Operation(
        "chat_completions",
        "POST",
        "/v1/chat/completions",
        "The model's answer to a conversation",
        chat.create,
        ChatCompletion,
        ChatRequest,
        chunk=ChatCompletionChunk,
        errors=GENERATES,
    ),
    Operation(
        "completions",
        "POST",
        "/v1/completions",
        "The text that follows each prompt",
        completions.create,
        TextCompletion,
        CompletionRequest,
        chunk=TextCompletionChunk,
        errors=GENERATES,
    ),
    Operation(
        "messages",
        "POST",
        messages.PATH,
        "The model's answer to a conversation, in Anthropic's format",
        messages.create,
        MessageAnswer,
        MessagesRequest,
        chunk=MessageEvent,
        names_events=True,
        errors=GENERATES,
        error=MessageError,
    ),
    Operation(
        "count_tokens",
        "POST",
        f"{messages.PATH}/count_tokens",
        "The number of prompt tokens of a message request",
        messages.count_tokens,
        TokenCount,
        CountTokensRequest,
        errors=READS,
        error=MessageError,
    ),
    Operation(
        "responses",
        "POST",
        "/v1/responses",
        "The model's response to a conversation of items",
        responses.create,
        Response,
        ResponseRequest,
        chunk=ResponseEvent,
        names_events=True,
        errors=GENERATES,
    ),
    Operation(
        "count_input_tokens",
        "POST",
        "/v1/responses/input_tokens",
        "The number of input tokens of a response request",
        responses.count_input,
        InputTokens,
        InputTokensRequest,
        errors=READS,
    ),
    Operation(
        "get_response",
        "GET",
        "/v1/responses/{response_id}",
        "A stored response",
        kept.retrieve,
        Response,
        query=RetrieveQuery,
        errors=(400, 404),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "delete_response",
        "DELETE",
        "/v1/responses/{response_id}",
        "Delete a stored response",
        kept.delete,
        DeletedResponse,
        errors=(404,),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "list_input_items",
        "GET",
        "/v1/responses/{response_id}/input_items",
        "The input items of a stored response",
        kept.list_input,
        ResponseItems,
        query=ListQuery,
        errors=(400, 404),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "resume_stream",
        "GET",
        "/v1/streams/{stream_id}",
        "The rest of a stream, after its client lost the connection",
        streams.resume,
        query=StreamQuery,
        chunk=StreamEvent,
        errors=(400, 404, 410),
        parameters=STREAM_ID,
    ),
    Operation(
        "embeddings",
        "POST",
        "/v1/embeddings",
        "An embedding for each text",
        embeddings.embed,
        Embeddings,
        EmbeddingsRequest,
        errors=GENERATES,
    ),
    Operation(
        "rerank",
        "POST",
        "/v1/rerank",
        "The relevance of documents to a query, in the form of Jina and Cohere",
        rerank.rerank,
        Ranking,
        RerankRequest,
        errors=GENERATES,
        aliases=("/v2/rerank", "/v1/reranking", "/reranking"),
    ),
    Operation(
        "create_batch",
        "POST",
        "/v1/batches",
        "Run the requests of a file whenever there is room",
        batches.create,
        Batch,
        BatchRequest,
        errors=(400, 409, 413, 500, 503, 507),
    ),
    Operation(
        "list_batches",
        "GET",
        "/v1/batches",
        "The batches of the client, the newest first",
        batches.list_batches,
        BatchList,
        query=BatchListQuery,
        errors=(400, 500, 503),
    ),
    Operation(
        "get_batch",
        "GET",
        "/v1/batches/{batch_id}",
        "A batch: its status, and its files when it has ended",
        batches.retrieve,
        Batch,
        errors=(404, 500, 503),
        parameters=BATCH_ID,
    ),
    Operation(
        "cancel_batch",
        "POST",
        "/v1/batches/{batch_id}/cancel",
        "End a batch early",
        batches.cancel,
        Batch,
        errors=(404, 409, 500, 503, 507),
        parameters=BATCH_ID,
    ),
    Operation(
        "ollama_chat",
        "POST",
        "/api/chat",
        "The model's answer to a conversation, in Ollama's format",
        ollama.chat,
        ollama_answers.OllamaChatAnswer,
        OllamaChatRequest,
        chunk=ollama_answers.OllamaChatAnswer,
        streams_lines=True,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_generate",
        "POST",
        "/api/generate",
        "The model's answer to a prompt, in Ollama's format",
        ollama.generate,
        ollama_answers.OllamaGenerateAnswer,
        OllamaGenerateRequest,
        chunk=ollama_answers.OllamaGenerateAnswer,
        streams_lines=True,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_embed",
        "POST",
        "/api/embed",
        "An embedding for each text, in Ollama's format",
        ollama_embeddings.embed,
        ollama_answers.OllamaEmbeddings,
        OllamaEmbedRequest,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_embeddings",
        "POST",
        "/api/embeddings",
        "The embedding of one text, in Ollama's older format",
        ollama_embeddings.embed_one,
        ollama_answers.OllamaEmbedding,
        OllamaEmbeddingsRequest,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_tags",
        "GET",
        "/api/tags",
        "The models that are being served, in Ollama's format",
        ollama_models.tags,
        ollama_answers.OllamaModels,
        scope=Scope.PUBLIC,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_show",
        "POST",
        "/api/show",
        "What a model's file says and what the model can do, in Ollama's format",
        ollama_models.show,
        ollama_answers.OllamaModelInfo,
        OllamaShowRequest,
        errors=(400, 404, 413),
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_ps",
        "GET",
        "/api/ps",
        "The models that are in memory, in Ollama's format",
        ollama_models.ps,
        ollama_answers.OllamaLoadedModels,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_version",
        "GET",
        "/api/version",
        "The version of Ollama whose API the server follows",
        ollama_models.version,
        ollama_answers.OllamaVersion,
        scope=Scope.PUBLIC,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "upload_file",
        "POST",
        "/v1/files",
        "Upload a file",
        files.create,
        FileObject,
        form=FileUpload,
        errors=(400, 408, 413, 415, 500, 503, 507),
    ),
    Operation(
        "list_files",
        "GET",
        "/v1/files",
        "The files of the client, latest first",
        files.list_files,
        FileList,
        query=FileListQuery,
        errors=(400, 500, 503),
    ),
    Operation(
        "get_file",
        "GET",
        "/v1/files/{file_id}",
        "A file by its id",
        files.retrieve,
        FileObject,
        errors=(404, 500, 503),
        parameters=FILE_ID,
    ),
    Operation(
        "delete_file",
        "DELETE",
        "/v1/files/{file_id}",
        "Delete a file",
        files.delete,
        DeletedFile,
        errors=(404, 409, 500, 503),
        parameters=FILE_ID,
    ),
    Operation(
        "file_content",
        "GET",
        "/v1/files/{file_id}/content",
        "The bytes of a file",
        files.content,
        is_download=True,
        errors=(404, 500, 503),
        parameters=FILE_ID,
    ),
    Operation(
        "list_models",
        "GET",
        "/v1/models",
        "The models that are being served",
        models.list_models,
        ModelList,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "get_model",
        "GET",
        "/v1/models/{name}",
        "A model by its name",
        models.get_model,
        Model,
        errors=(404,),
        parameters=MODEL_NAME,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "start_model",
        "POST",
        "/v1/models/start",
        "Start serving one more model",
        management.start,
        Model,
        StartRequest,
        errors=(400, 403, 404, 409, 413, 415),
        scope=Scope.OWNER,
    ),
    Operation(
        "stop_model",
        "POST",
        "/v1/models/stop",
        "Stop serving a model",
        management.stop,
        Model,
        StopRequest,
        errors=(400, 403, 404, 413, 415),
        scope=Scope.OWNER,
    ),
    Operation(
        "tokenize",
        "POST",
        "/tokenize",
        "Convert text or a conversation to tokens",
        tokens.tokenize,
        Tokens,
        TokenizeRequest,
        errors=READS,
    ),
    Operation(
        "detokenize",
        "POST",
        "/detokenize",
        "Convert tokens to text",
        tokens.detokenize,
        Text,
        DetokenizeRequest,
        errors=(400, 403, 404, 413),
    ),
    Operation(
        "apply_template",
        "POST",
        "/apply-template",
        "The prompt that the model's chat template makes of a conversation",
        tokens.apply_template,
        RenderedPrompt,
        ApplyTemplateRequest,
        errors=READS,
    ),
    Operation(
        "render_chat_completion",
        "POST",
        "/v1/chat/completions/render",
        "The prompt tokens of a chat, in vLLM's form, for routers",
        chat.render,
        RenderedRequest,
        ChatRequest,
        errors=READS,
    ),
    Operation(
        "render_completion",
        "POST",
        "/v1/completions/render",
        "The prompt tokens of completions, in vLLM's form, for routers",
        completions.render,
        RenderedRequests,
        CompletionRequest,
        errors=READS,
    ),
    Operation(
        "render_response",
        "POST",
        "/v1/responses/render",
        "The prompt tokens of a response, in vLLM's form, for routers",
        responses.render,
        RenderedRequest,
        ResponseRequest,
        errors=READS,
    ),
    Operation(
        "health",
        "GET",
        "/healthz",
        "The state of the server and its models",
        health.health,
        Health,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "readiness",
        "GET",
        "/health",
        "Whether the server is ready, for load balancers and routers",
        health.readiness,
        Readiness,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "ready",
        "GET",
        "/readyz",
        "Whether a request to the first model would be answered now",
        health.ready,
        Ready,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "loads",
        "GET",
        "/v1/loads",
        "The load of each model, for routers",
        metrics.loads,
        Loads,
        query=LoadsQuery,
        errors=(400,),
        scope=Scope.PUBLIC,
    ),
    Operation(
        "live",
        "GET",
        "/v1/live",
        "What the server does right now: steps, pages, queue, latency, memory",
        live.watch,
        chunk=LiveEvent,
        is_endless=True,
        errors=(503,),
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "What the server counts, in Prometheus' text format",
        metrics.metrics,
        scope=Scope.METRICS,
    ),
    Operation(
        "version",
        "GET",
        "/version",
        "The versions of the server and its llama.cpp, and how llama.cpp was built",
        version.version,
        version.Version,
        scope=Scope.PUBLIC,
    ),
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
