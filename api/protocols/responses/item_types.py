"""The wire types of the items of answers in the Responses API, and of the parts of items."""

from typing import Annotated, Any, Literal

from pydantic import Field

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


class ResponseCustomToolCall(Answer):
    id: str
    type: Literal["custom_tool_call"]
    status: Status
    call_id: str
    name: str
    namespace: str = ""
    """Left out unless the tool is in one."""
    input: str


OutputItem = Annotated[
    ResponseMessage | ResponseReasoning | ResponseFunctionCall | ResponseCustomToolCall, Field(discriminator="type")
]


class ListedMessage(Answer):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "system", "developer"]
    content: list[InputText]
    phase: Literal["commentary", "final_answer"] = "final_answer"


class ListedCallOutput(Answer):
    id: str
    type: Literal["function_call_output", "custom_tool_call_output"]
    status: Status
    call_id: str
    output: str | list[InputText]
    name: str = ""
    namespace: str = ""
    """Both left out unless a client sent them."""


ListedItem = ListedMessage | OutputItem | ListedCallOutput
