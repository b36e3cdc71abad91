"""The wire types of chat completions, whole and as chunks."""

from typing import Any, Literal

from pydantic import Field

from api.protocols.types import Answer, TokenLogprob, Usage


class Function(Answer):
    name: str
    arguments: str
    """The text of a JSON object."""


class ToolCall(Answer):
    id: str
    type: Literal["function"]
    function: Function


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
