"""The wire types of chat completions, whole and as chunks."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.priorities import ServedTier
from api.protocols.types import Answer, Timings, TokenLogprob, Usage


class Function(Answer):
    name: str
    arguments: str
    """The text of a JSON object."""


class ToolCall(Answer):
    id: str
    type: Literal["function"]
    function: Function


class CustomInput(Answer):
    name: str
    input: str


class CustomToolCall(Answer):
    id: str
    type: Literal["custom"]
    custom: CustomInput


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


FinishReason = Literal["stop", "length", "tool_calls"]


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning_content: str = ""
    """The model's reasoning before its answer; left out if there is none."""
    tool_calls: list[Annotated[ToolCall | CustomToolCall, Field(discriminator="type")]] = Field(default_factory=list)
    """Left out if there are none."""


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
    timings: Timings | None = None
    """Left out unless the request asks for it."""
    service_tier: ServedTier
    system_fingerprint: str


class FunctionDelta(Answer):
    name: str = ""
    arguments: str


class CustomDelta(Answer):
    name: str = ""
    input: str


class ToolCallDelta(Answer):
    """It has `function` or `custom`."""

    index: int
    id: str = ""
    type: Literal["function", "custom"] = "function"
    function: FunctionDelta = Field(default_factory=lambda: FunctionDelta(arguments=""))
    custom: CustomDelta = Field(default_factory=lambda: CustomDelta(input=""))


class Delta(Answer):
    """One piece: the role, or a part of the content, the reasoning or a tool call. Empty at the end."""

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
    """One event of a stream. With `include_usage`, the last one has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    service_tier: ServedTier
    system_fingerprint: str
