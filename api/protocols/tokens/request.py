"""Text to tokens and back, and conversations to prompts: fields by llama-server's and vLLM's names."""

from typing import Annotated

from pydantic import Field, model_validator

from api.errors import ApiError
from api.protocols.chat.request import ChatRequest
from api.protocols.conversation import Message, ToolDefinition
from api.protocols.fields import Strict, TemplateVariables, Token


class ApplyTemplateRequest(Strict):
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[ToolDefinition] | None = None
    chat_template_kwargs: TemplateVariables | None = None

    def as_chat(self) -> ChatRequest:
        return ChatRequest(
            model=self.model or "",
            messages=self.messages,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )


class TokenizeRequest(Strict):
    """`content` (llama-server) or `prompt` (vLLM) is text, `messages` a conversation."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[ToolDefinition] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    add_special: bool | None = None
    """Whether a text gets the model's BOS, if it wants one."""
    add_special_tokens: bool | None = None
    """The same."""
    parse_special: bool | None = None
    """Whether texts of control tokens become these tokens."""
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _says_what(self) -> "TokenizeRequest":
        given = [name for name in ("content", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ApiError(400, "Give one of 'content', 'prompt' and 'messages'.", param="content")
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Token]
