"""The wire types of answers. Answers are built as plain objects, for speed; the tests hold them against these types."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Every field is always there unless it has a default, and there are no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorDetails(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """OpenAI's error object."""

    error: ErrorDetails


# -- what endpoints that generate text have in common


class PromptTokensDetails(Answer):
    cached_tokens: int
    """Tokens that were found in memory instead of computed."""
    audio_tokens: int


class CompletionTokensDetails(Answer):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Function(Answer):
    name: str
    arguments: str
    """The text of a JSON object."""


class ToolCall(Answer):
    id: str
    type: Literal["function"]
    function: Function


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


FinishReason = Literal["stop", "length", "tool_calls"]


# -- chat completions


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning_content: str = ""
    """What a model that thinks thought before it answered; left out where there is nothing."""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    """Left out where none were made."""


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"]
    system_fingerprint: str


class FunctionDelta(Answer):
    name: str = ""
    arguments: str


class ToolCallDelta(Answer):
    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class Delta(Answer):
    """One piece: the role, or some of the content, the thoughts or a tool call; empty at the end."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = Field(default_factory=list)


class ChatChunkChoice(Answer):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Answer):
    """One event of a stream. The last one, if asked for, has no choices and the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    service_tier: Literal["default"]
    system_fingerprint: str


# -- text completions


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(CompletionChoice):
    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]  # only the last chunk has one


class TextCompletionChunk(Answer):
    """One event of a stream. The last one, if asked for, has no choices and the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str


# -- embeddings


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    """Of the text in `input`."""
    embedding: list[float] | str
    """A vector of length 1, or its little-endian float32 in base64."""


class EmbeddingsUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


# -- the rest


ModelStatus = Literal["ready", "loading", "stopping", "unloaded", "failed"]


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: ModelStatus
    """One that is unloaded is loaded again by the next request for it; one that failed is tried again and again."""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class TokenPiece(Answer):
    id: int
    piece: str


class Tokens(Answer):
    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] = Field(default_factory=list)
    """Left out unless asked for."""


class Text(Answer):
    content: str
    prompt: str


class RenderedPrompt(Answer):
    prompt: str


class KvMemory(Answer):
    tokens: int
    bytes: int
    held_tokens: int
    cached_tokens: int
    free_tokens: int


class ModelHealth(Answer):
    model: str
    aliases: list[str]
    path: str | None
    """Of its file; null for who asks from another machine."""
    status: ModelStatus
    engine_pid: int | None
    context_length: int | None
    kv: KvMemory | None
    running: int
    waiting: int
    statistics: Annotated[dict[str, Any] | None, Field(description="Counters of the scheduler and of the cache.")]


class Health(Answer):
    status: Literal["ok", "loading", "draining", "failed"]
    reason: str | None = None
    """Why a model failed."""
    models: list[ModelHealth]
    pid: int
    uptime_seconds: float
    version: str
