"""The wire types of Anthropic's answers, whole and as events of a stream."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.protocols.types import Answer, AnyAnswer


class AnsweredText(Answer):
    type: Literal["text"]
    text: str
    citations: None


class AnsweredThought(Answer):
    type: Literal["thinking"]
    thinking: str
    signature: str
    """The message's id. It is not a signature, and is never checked."""


class AnsweredCall(Answer):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    """If the call was cut, the arguments up to the cut."""


AnsweredBlock = Annotated[AnsweredText | AnsweredThought | AnsweredCall, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageTokensDetails(Answer):
    thinking_tokens: int


class MessageUsage(Answer):
    input_tokens: int
    """Tokens of the prompt that were computed."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    """Tokens of the prompt that were found in the KV cache instead."""
    output_tokens: int
    output_tokens_details: MessageTokensDetails


class MessageAnswer(Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Answer):
    input_tokens: int


class ThreadDetails(Answer):
    error_code: Literal["thread_unsupported_request"]


class MessageErrorDetails(Answer):
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
        "timeout_error",
    ]
    message: str
    details: ThreadDetails | None


class MessageError(Answer):
    """Anthropic's error object."""

    type: Literal["error"]
    error: MessageErrorDetails
    request_id: str


# -- events


class MessageStart(Answer):
    type: Literal["message_start"]
    message: MessageAnswer


class BlockStart(Answer):
    type: Literal["content_block_start"]
    index: int
    content_block: AnsweredBlock


class TextDelta(Answer):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Answer):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Answer):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(Answer):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Answer):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputDelta, Field(discriminator="type")]


class BlockStop(Answer):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(Answer):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Answer):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: MessageUsage


class MessageStop(Answer):
    type: Literal["message_stop"]


class Ping(Answer):
    type: Literal["ping"]


class MessageEvent(
    AnyAnswer[
        Annotated[
            MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping,
            Field(discriminator="type"),
        ]
    ]
):
    """One event of a stream. Its name is its type."""
