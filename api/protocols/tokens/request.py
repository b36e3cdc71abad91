"""The wire types of requests about tokens and prompts, with llama-server's and vLLM's field names."""

from collections.abc import Sequence

from pydantic import model_validator

from api.errors import ApiError
from api.protocols.conversation import AnyTool, Message, Messages, Tools, all_tools, warnings
from api.protocols.fields import Strict, Token
from api.protocols.template_fields import TemplateFields
from api.protocols.tools import ToolChoice, tool_use
from api.serving.spec import Conversation


def _conversation(messages: Sequence[Message], tools: Sequence[AnyTool] | None, fields: TemplateFields) -> Conversation:
    """Raises ApiError 400 if two tools have the same name, or if fields contradict each other."""
    listed = all_tools(tools)
    tool_use(listed, ToolChoice())
    neutral = [message.neutral() for message in messages]
    return Conversation(neutral, listed, fields.variables(), end=fields.prompt_end(messages))


class ApplyTemplateRequest(TemplateFields):
    endpoint = "apply-template"

    model: str | None = None
    messages: Messages
    tools: Tools | None = None

    @property
    def warnings(self) -> list[str]:
        return warnings(self.messages, self.tools)

    def conversation(self) -> Conversation:
        """Raises ApiError 400 if two tools have the same name, or if fields contradict each other."""
        return _conversation(self.messages, self.tools, self)


class TokenizeRequest(TemplateFields):
    """One of `content` (text, llama-server), `prompt` (text, vLLM) and `messages` (a conversation) must be given."""

    endpoint = "tokenize"

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special: bool | None = None
    """Whether a text gets the model's BOS, if the model uses it."""
    add_special_tokens: bool | None = None
    """The same as `add_special`."""
    parse_special: bool | None = None
    """Whether the texts of control tokens become these tokens."""
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @property
    def warnings(self) -> list[str]:
        return warnings(self.messages, self.tools)

    @model_validator(mode="after")
    def _has_one_input(self) -> "TokenizeRequest":
        given = [name for name in ("content", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ApiError(400, "Give one of 'content', 'prompt' and 'messages'.", param="content")
        return self

    def conversation(self) -> Conversation | None:
        """None for a text. Raises ApiError 400 as ApplyTemplateRequest's."""
        return None if self.messages is None else _conversation(self.messages, self.tools, self)


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Token]
