"""Wire types of OpenAI's conversations: messages, tool calls and tools. Chats and the token endpoints use them."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    model_validator,
)

from api.protocols import hosted, thoughts
from api.protocols.custom import InputGrammar, arguments_of, as_function, bound_grammars, is_hint
from api.protocols.fields import FunctionName, Lenient, Strict, Unserved
from api.protocols.formats import TextFormat
from api.protocols.hosted import HostedTool, Media
from api.protocols.kinds import type_of
from api.protocols.warnings import listing
from api.serving import spec
from api.text.dialects import Tool

TEXT_FIELDS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The field that has the text of a content part, by the part's type. The longer names are those of responses."""


def _joined(content: object) -> object:
    """Content as one string. Parts are joined by a line break, as in llama-server and vLLM.

    Parts that are not text become a short text (see `Message.media`).
    """
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("a content part must be an object with a type")
        if (media := hosted.media_type(part)) is not None:
            texts.append(hosted.omitted(media))
            continue
        field = TEXT_FIELDS.get(part["type"])
        if field is None:
            raise ValueError(_not_supported(part["type"]))
        if not isinstance(part.get(field), str):
            raise ValueError(f"a content part of type {part['type']!r} needs a string {field!r}")
        texts.append(part[field])
    return "\n".join(texts)


def _not_supported(kind: str) -> str:
    return f"content parts of type {kind!r} are not supported; only 'text' is"


class TextPart(Lenient):
    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Lenient):
    type: Literal["refusal"]
    refusal: str


class ThinkingPart(Lenient):
    """Reasoning as a part of an assistant's content, as from Mistral, LangChain and others."""

    type: Literal["thinking", "reasoning", "redacted_thinking"]


Content = Annotated[
    str,
    BeforeValidator(_joined, json_schema_input_type=str | list[TextPart | RefusalPart | ThinkingPart | Media]),
]


def _as_json(arguments: object) -> object:
    """The text of arguments that were sent as an object or as null."""
    if arguments is None:
        return ""
    # formatted like answers, to get a prefix hit
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


Arguments = Annotated[str, BeforeValidator(_as_json, json_schema_input_type=str | dict[str, Any] | None)]
"""The arguments of an earlier call: JSON text, unless the model's answer was invalid or was cut."""


class CalledFunction(Lenient):
    """`name` may be one that a tool cannot have: models make mistakes."""

    name: str
    arguments: Arguments = ""


class ToolCall(Lenient):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] | None = "function"
    function: CalledFunction

    def neutral(self) -> spec.ToolCall:
        return spec.ToolCall(self.id, self.function.name, self.function.arguments)


class CustomInput(Lenient):
    name: str
    input: str


class CustomToolCall(Lenient):
    """A call of a custom tool that the model made earlier in the conversation."""

    id: str
    type: Literal["custom"]
    custom: CustomInput

    def neutral(self) -> spec.ToolCall:
        return spec.ToolCall(self.id, self.custom.name, arguments_of(self.custom.input))


def _call_tag(value: object) -> str:
    return "<custom>" if type_of(value) == "custom" else "<function>"


AnyToolCall = Annotated[
    Annotated[ToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")],
    Discriminator(_call_tag),
]


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[AnyToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The name of `reasoning_content` in vLLM and OpenRouter."""
    reasoning_details: list[dict[str, Any]] | None = None
    """OpenRouter's form of the reasoning. It is only read if the message has no other."""
    annotations: list[Any] | None = None
    audio: Unserved = None
    function_call: Unserved = None
    _media: Sequence[str] = ()

    @property
    def media(self) -> Sequence[str]:
        """Types of the parts that are not text, and that were replaced by a short text."""
        return self._media

    @model_validator(mode="wrap")
    @classmethod
    def _keeps_types_of_media(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        message = handler(value)
        content = value.get("content") if isinstance(value, dict) else None
        if isinstance(content, list):
            message._media = [media for part in content if (media := hosted.media_type(part)) is not None]
        return message

    @model_validator(mode="before")
    @classmethod
    def _with_separate_reasoning(cls, value: object) -> object:
        is_answer = isinstance(value, dict) and value.get("role") == "assistant"
        return thoughts.separated(value) if is_answer and isinstance(value, dict) else value

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} cannot have tool calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        self._details()  # raises ValueError for one that is malformed
        return self

    def neutral(self) -> spec.Message:
        return spec.Message(
            self.role,
            self.content or self.refusal or "",
            [call.neutral() for call in self.tool_calls or ()],
            self.reasoning_content or self.reasoning or self._details() or self.reasoning_content,
            self.tool_call_id,
            self.name,
        )

    def _details(self) -> str:
        return thoughts.joined(map(thoughts.text_of, self.reasoning_details or ()))


class FunctionDefinition(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Strict):
    type: Literal["function"]
    function: FunctionDefinition

    def neutral(self) -> Tool:
        function = self.function
        return Tool(function.name, function.description, function.parameters or {}, bool(function.strict))


class GrammarFormat(Strict):
    type: Literal["grammar"]
    grammar: InputGrammar


class CustomDefinition(Strict):
    name: FunctionName
    description: str | None = None
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None

    @property
    def grammar(self) -> InputGrammar | None:
        return self.format.grammar if isinstance(self.format, GrammarFormat) else None


class CustomToolDefinition(Strict):
    """A function whose only argument is a text."""

    type: Literal["custom"]
    custom: CustomDefinition

    def neutral(self) -> Tool:
        return as_function(self.custom.name, self.custom.description, self.custom.grammar)


AnyTool = Annotated[
    Annotated[ToolDefinition, Tag("<function>")]
    | Annotated[CustomToolDefinition, Tag("<custom>")]
    | Annotated[HostedTool, Tag(hosted.HOSTED_TAG)],
    Discriminator(hosted.hosted_tag),
    BeforeValidator(hosted.check_tool("function", "custom")),
]


def _with_bounded_grammars(tools: list[AnyTool]) -> list[AnyTool]:
    bound_grammars(tool.custom.grammar for tool in tools if isinstance(tool, CustomToolDefinition))
    return tools


Tools = Annotated[list[AnyTool], AfterValidator(_with_bounded_grammars)]


def _only_text_in_the_newest_question(messages: list[Message]) -> list[Message]:
    """Raises ApiError 400 if the newest user message has a part that is not text."""
    questions = [index for index, message in enumerate(messages) if message.role == "user"]
    if questions and (media := messages[questions[-1]].media):
        raise hosted.refusal(f"messages[{questions[-1]}].content", _not_supported(media[0]))
    return messages


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(_only_text_in_the_newest_question)]


def all_tools(definitions: Iterable[AnyTool] | None) -> list[Tool]:
    """The functions that the model gets."""
    return [tool.neutral() for tool in definitions or () if not isinstance(tool, HostedTool)]


def warnings(messages: Iterable[Message] | None, definitions: Sequence[AnyTool] | None) -> list[str]:
    """The warnings about a conversation and its tools."""
    tools = definitions or ()
    hints = [
        tool.custom.name for tool in tools if isinstance(tool, CustomToolDefinition) and is_hint(tool.custom.grammar)
    ]
    return [
        *hosted.tools_left_out(tools),
        *listing("grammars not enforced", hints),
        *hosted.content_left_out(media for message in messages or () for media in message.media),
    ]
