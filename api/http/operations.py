"""The table of operations: routes, 405s, access, the OpenAPI document and the docs' table of endpoints."""

from typing import Any, Final

from api.http import openapi
from api.http.operation import Operation, Parameter, Scope
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
from api.protocols.management import answer as management
from api.protocols.management import health, models, version
from api.protocols.management.request import StartRequest, StopRequest
from api.protocols.management.types import Health, Model, ModelList
from api.protocols.messages import answer as messages
from api.protocols.messages.request import CountTokensRequest, MessagesRequest
from api.protocols.messages.types import MessageAnswer, MessageError, MessageEvent, TokenCount
from api.protocols.responses import answer as responses
from api.protocols.responses import kept
from api.protocols.responses.request import InputTokensRequest, ListQuery, ResponseRequest, RetrieveQuery
from api.protocols.responses.types import DeletedResponse, InputTokens, Response, ResponseEvent, ResponseItems
from api.protocols.tokens import answer as tokens
from api.protocols.tokens.request import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from api.protocols.tokens.types import RenderedPrompt, Text, Tokens

GENERATES: Final = (400, 404, 413, 429, 500, 503)
READS: Final = (400, 404, 413, 503)
RESPONSE_ID: Final = {"response_id": Parameter("The response's id.")}
MODEL_NAME: Final = {"name": Parameter("The model's name.", has_slashes=True)}


async def _openapi_document(call: Call[None]) -> dict[str, Any]:  # noqa: ARG001 - it is the same for all
    return openapi.document(OPERATIONS)


async def _docs(call: Call[None]) -> Reply:  # noqa: ARG001
    return Reply(openapi.page(OPERATIONS).encode(), content_type="text/html; charset=utf-8")


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
        "The model's answer to a conversation, as Anthropic's API has it",
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
        "How many tokens the prompt of a message would be",
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
        "How many tokens the input of a response would be",
        responses.count_input,
        InputTokens,
        InputTokensRequest,
        errors=READS,
    ),
    Operation(
        "get_response",
        "GET",
        "/v1/responses/{response_id}",
        "A response that is kept",
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
        "Keep it no longer",
        kept.delete,
        DeletedResponse,
        errors=(404,),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "list_input_items",
        "GET",
        "/v1/responses/{response_id}/input_items",
        "What it responded to",
        kept.list_input,
        ResponseItems,
        query=ListQuery,
        errors=(400, 404),
        parameters=RESPONSE_ID,
    ),
    Operation(
        "embeddings",
        "POST",
        "/v1/embeddings",
        "A vector for each text",
        embeddings.embed,
        Embeddings,
        EmbeddingsRequest,
        errors=GENERATES,
    ),
    Operation(
        "list_models",
        "GET",
        "/v1/models",
        "The models that are served",
        models.list_models,
        ModelList,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "get_model",
        "GET",
        "/v1/models/{name}",
        "One of them",
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
        "Serve one more model; from this machine only",
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
        "Stop serving one; from this machine only",
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
        "Text or a conversation to tokens",
        tokens.tokenize,
        Tokens,
        TokenizeRequest,
        errors=READS,
    ),
    Operation(
        "detokenize",
        "POST",
        "/detokenize",
        "Tokens to text",
        tokens.detokenize,
        Text,
        DetokenizeRequest,
        errors=(400, 404, 413),
    ),
    Operation(
        "apply_template",
        "POST",
        "/apply-template",
        "A conversation as the model reads it",
        tokens.apply_template,
        RenderedPrompt,
        ApplyTemplateRequest,
        errors=READS,
    ),
    Operation(
        "health",
        "GET",
        "/healthz",
        "How the server is",
        health.health,
        Health,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "version",
        "GET",
        "/version",
        "Which server this is, and how its llama.cpp was built",
        version.version,
        version.Version,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "openapi",
        "GET",
        "/openapi.json",
        "This API, described for machines",
        _openapi_document,
        scope=Scope.PUBLIC,
    ),
    Operation("docs", "GET", "/docs", "This API, described for people", _docs, scope=Scope.PUBLIC),
)
