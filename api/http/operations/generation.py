"""Operations that generate text or embeddings, or rank documents, and those about stored responses and streams."""

from typing import Final

from api.http.operation import GENERATES, READS, Operation, Parameter
from api.protocols.chat import answer as chat
from api.protocols.chat.request import ChatRequest
from api.protocols.chat.types import ChatCompletion, ChatCompletionChunk
from api.protocols.completions import answer as completions
from api.protocols.completions.request import CompletionRequest
from api.protocols.completions.types import TextCompletion, TextCompletionChunk
from api.protocols.embeddings import answer as embeddings
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.embeddings.types import Embeddings
from api.protocols.messages import answer as messages
from api.protocols.messages.request import CountTokensRequest, MessagesRequest
from api.protocols.messages.types import MessageAnswer, MessageError, MessageEvent, TokenCount
from api.protocols.rerank import answer as rerank
from api.protocols.rerank.request import RerankRequest
from api.protocols.rerank.types import Ranking
from api.protocols.responses import answer as responses
from api.protocols.responses import kept
from api.protocols.responses.request import InputTokensRequest, ListQuery, ResponseRequest, RetrieveQuery
from api.protocols.responses.types import DeletedResponse, InputTokens, Response, ResponseEvent, ResponseItems
from api.protocols.streams import answer as streams
from api.protocols.streams.request import StreamQuery
from api.protocols.types import AnyAnswer

RESPONSE_ID: Final = {"response_id": Parameter("The response's id.")}
STREAM_ID: Final = {"stream_id": Parameter("The stream's id, from the header `X-Stream-Id` of the answer.")}


class StreamEvent(AnyAnswer[ChatCompletionChunk | TextCompletionChunk | MessageEvent | ResponseEvent | MessageError]):
    """One event of a resumed stream, as its endpoint sends it."""


GENERATION: Final = (
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
)
