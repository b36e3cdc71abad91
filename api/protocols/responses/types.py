"""The wire types of the Responses API's answers: the response, its items, and the events of a stream."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from api.protocols.types import Answer, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


# -- parts of items


class ResponseText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class ResponseRefusal(Answer):
    """Only in items that a client sent."""

    type: Literal["refusal"]
    refusal: str


class ReasoningText(Answer):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Answer):
    """Only in items that a client sent."""

    type: Literal["summary_text"]
    text: str


class InputText(Answer):
    type: Literal["input_text"]
    text: str


# -- items


class ResponseMessage(Answer):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[ResponseText | ResponseRefusal]
    phase: Literal["commentary", "final_answer"] = "final_answer"
    """Left out unless a client sent it."""


class ResponseReasoning(Answer):
    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[SummaryText]
    content: list[ReasoningText]


class ResponseFunctionCall(Answer):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    namespace: str = ""
    """Left out unless the function is in one."""
    arguments: str
    """The text of a JSON object."""


OutputItem = Annotated[ResponseMessage | ResponseReasoning | ResponseFunctionCall, Field(discriminator="type")]


class ListedMessage(Answer):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "system", "developer"]
    content: list[InputText]
    phase: Literal["commentary", "final_answer"] = "final_answer"


class ListedFunctionCallOutput(Answer):
    id: str
    type: Literal["function_call_output"]
    status: Status
    call_id: str
    output: str | list[InputText]
    name: str = ""
    namespace: str = ""
    """Both left out unless a client sent them."""


class ResponseItems(Answer):
    object: Literal["list"]
    data: list[ListedMessage | ResponseMessage | ResponseReasoning | ResponseFunctionCall | ListedFunctionCallOutput]
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


class NamespaceEcho(Answer):
    type: Literal["namespace"]
    name: str
    description: str
    tools: list[FunctionEcho]


class WebSearchEcho(Answer):
    type: Literal["web_search"]
    external_web_access: Literal[False]


ToolEcho = Annotated[FunctionEcho | NamespaceEcho | WebSearchEcho, Field(discriminator="type")]


class TextEcho(Answer):
    format: dict[str, Any]
    verbosity: Literal["medium"]


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
    service_tier: Literal["default"]
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
    RootModel[
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
            | OutputItemDone
            | ResponseCompleted
            | ResponseIncomplete
            | ResponseFailed,
            Field(discriminator="type"),
        ]
    ]
):
    """One event of a stream. The last one has the whole response."""
