"""The wire types of the Responses API's answers: the response, lists of items, and the events of a stream."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.priorities import ServedTier
from api.protocols.responses.item_types import ListedItem, OutputItem, ReasoningText, ResponseText
from api.protocols.types import Answer, AnyAnswer, TokenLogprob

# -- lists of items


class ResponseItems(Answer):
    object: Literal["list"]
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- the response


class InputTokensDetails(Answer):
    cached_tokens: int
    """Tokens that were found in the KV cache instead of computed."""
    cache_write_tokens: int


class OutputTokensDetails(Answer):
    reasoning_tokens: int


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Answer):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"] | None
    """Null if a stop string cut a call."""


class FunctionEcho(Answer):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class CustomEcho(Answer):
    type: Literal["custom"]
    name: str
    description: str = ""
    format: dict[str, Any] = Field(default_factory=dict)
    """Both left out unless the request has them."""


class NamespaceEcho(Answer):
    type: Literal["namespace"]
    name: str
    description: str
    tools: list[Annotated[FunctionEcho | CustomEcho, Field(discriminator="type")]]


ToolEcho = Annotated[FunctionEcho | CustomEcho | NamespaceEcho, Field(discriminator="type")]


class TextEcho(Answer):
    format: dict[str, Any]
    verbosity: Literal["low", "medium", "high"]


class ReasoningEcho(Answer):
    effort: str | None
    summary: None


class Response(Answer):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None
    """Null until the response has ended."""
    model: str
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: TextEcho
    reasoning: ReasoningEcho
    tools: list[ToolEcho]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: Literal["auto", "disabled"]
    store: bool
    background: Literal[False]
    metadata: dict[str, str]
    user: str | None
    service_tier: ServedTier
    safety_identifier: str | None
    prompt_cache_key: str | None


class InputTokens(Answer):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(Answer):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


# -- the events of a stream


class _Event(Answer):
    sequence_number: int


class ResponseCreated(_Event):
    type: Literal["response.created"]
    response: Response


class ResponseInProgress(_Event):
    type: Literal["response.in_progress"]
    response: Response


class ResponseCompleted(_Event):
    type: Literal["response.completed"]
    response: Response


class ResponseIncomplete(_Event):
    type: Literal["response.incomplete"]
    response: Response


class ResponseFailed(_Event):
    type: Literal["response.failed"]
    response: Response


class _ItemEvent(_Event):
    output_index: int


class OutputItemAdded(_ItemEvent):
    type: Literal["response.output_item.added"]
    item: OutputItem


class OutputItemDone(_ItemEvent):
    type: Literal["response.output_item.done"]
    item: OutputItem


class _PieceEvent(_ItemEvent):
    item_id: str


class FunctionCallArgumentsDelta(_PieceEvent):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class FunctionCallArgumentsDone(_PieceEvent):
    type: Literal["response.function_call_arguments.done"]
    arguments: str


class CustomInputDelta(_PieceEvent):
    type: Literal["response.custom_tool_call_input.delta"]
    delta: str


class CustomInputDone(_PieceEvent):
    type: Literal["response.custom_tool_call_input.done"]
    input: str


class _PartEvent(_PieceEvent):
    content_index: int


Part = Annotated[ResponseText | ReasoningText, Field(discriminator="type")]


class ContentPartAdded(_PartEvent):
    type: Literal["response.content_part.added"]
    part: Part


class ContentPartDone(_PartEvent):
    type: Literal["response.content_part.done"]
    part: Part


class OutputTextDelta(_PartEvent):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(_PartEvent):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprob]


class ReasoningTextDelta(_PartEvent):
    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningTextDone(_PartEvent):
    type: Literal["response.reasoning_text.done"]
    text: str


class ResponseEvent(
    AnyAnswer[
        Annotated[
            ResponseCreated
            | ResponseInProgress
            | OutputItemAdded
            | ContentPartAdded
            | OutputTextDelta
            | OutputTextDone
            | ReasoningTextDelta
            | ReasoningTextDone
            | ContentPartDone
            | FunctionCallArgumentsDelta
            | FunctionCallArgumentsDone
            | CustomInputDelta
            | CustomInputDone
            | OutputItemDone
            | ResponseCompleted
            | ResponseIncomplete
            | ResponseFailed,
            Field(discriminator="type"),
        ]
    ]
):
    """One event of a stream. The last one has the whole response."""
