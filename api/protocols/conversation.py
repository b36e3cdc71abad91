"""Wire types of OpenAI's conversations: messages, tool calls and tools. Chats and the token endpoints use them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from api.protocols.fields import FunctionName, Strict, Unserved
from api.serving import spec
from api.text.dialects import Tool


def _joined(content: object) -> object:
    """Content as one string. Parts are joined by a line break, as in llama-server and vLLM."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("a content part must be an object with a type")
        if part["type"] not in ("text", "refusal"):
            raise ValueError(f"content parts of type {part['type']!r} are not supported; only 'text' is")
        if not isinstance(part.get(part["type"]), str):
            raise ValueError(f"a content part of type {part['type']!r} needs a string {part['type']!r}")
        texts.append(part[part["type"]])
    return "\n".join(texts)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


Content = Annotated[
    str,
    BeforeValidator(_joined, json_schema_input_type=str | list[TextPart | RefusalPart]),
]


class CalledFunction(Strict):
    name: FunctionName
    arguments: str


class ToolCall(Strict):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def neutral(self) -> spec.ToolCall:
        return spec.ToolCall(self.id, self.function.name, self.function.arguments)


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    audio: Unserved = None
    function_call: Unserved = None

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} cannot have tool calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        return self

    def neutral(self) -> spec.Message:
        return spec.Message(
            self.role,
            self.content or self.refusal or "",
            [call.neutral() for call in self.tool_calls or ()],
            self.reasoning_content,
            self.tool_call_id,
            self.name,
        )


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
