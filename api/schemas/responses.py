"""The Responses API: what is asked for, and the items that a conversation is made of."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from api.errors import ApiError
from api.schemas.chat import (
    MAX_TOOLS,
    AllowedTools,
    AllowedToolsChoice,
    CacheRetention,
    ChatRequest,
    FunctionDefinition,
    FunctionName,
    FunctionReference,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    Message,
    Metadata,
    NamedTool,
    ReasoningEffort,
    RefusalPart,
    ResponseFormat,
    TextFormat,
    ToolDefinition,
    Unserved,
)
from api.schemas.common import MAX_TOP_LOGPROBS, GenerationRequest, Strict, parse

UNSERVED: Final[dict[str, tuple[object, ...]]] = {
    "access_programs": ({"cyber": "standard"},),
    "background": (False,),
    "background_options": ({}, {"completion_window": "soonest"}),
    "context_management": ([],),
    "conversation": (),
    "image": ({}, {"context_compression": "auto"}, {"context_compression": "disabled"}),
    "moderation": (),
    "prompt": (),
}
"""OpenAI's fields that are not served, and the values besides null that ask for nothing."""
LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED: Final = "reasoning.encrypted_content"
MAX_LISTED: Final = 100
"""Items of one page."""

Item = dict[str, Any]
"""An item of a conversation as it is listed: of type message, reasoning, function_call or function_call_output."""

_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def new_item_id(kind: str) -> str:
    """For an item of this type."""
    return new_id(_PREFIXES[kind])


def _type_of(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else None


def _tag(value: object) -> str:
    """Unlike the name of any field, so that an error names fields only."""
    return f"<{_type_of(value)}>"


def _check_type(value: object, what: str, served: tuple[str, ...]) -> object:
    """Raises ValueError for what has none of the types that are served."""
    kind = _type_of(value)
    if not isinstance(kind, str):
        raise ValueError(f"{what} is an object with a type")
    if kind not in served:
        raise ValueError(f"{what} of type {kind!r} is not served; what is: {', '.join(map(repr, served))}")
    return value


# -- what items are made of


def _part(value: object) -> object:
    return _check_type(value, "a content part", ("input_text", "output_text", "refusal"))


def _text_part(value: object) -> object:
    return _check_type(value, "a content part", ("input_text",))


def _as_parts(content: object) -> object:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


class InputTextPart(Strict):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputTextPart(Strict):
    """What a model said earlier."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


Part = Annotated[
    Annotated[InputTextPart, Tag("<input_text>")]
    | Annotated[OutputTextPart, Tag("<output_text>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(_tag),
    BeforeValidator(_part),
]
Parts = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]
TextParts = list[Annotated[InputTextPart, BeforeValidator(_text_part)]]
ItemId = Annotated[str, Field(min_length=1)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class SummaryPart(Strict):
    type: Literal["summary_text"]
    text: str


class ReasoningPart(Strict):
    type: Literal["reasoning_text"]
    text: str


class DirectCaller(Strict):
    """Not a program that the model wrote."""

    type: Literal["direct"]


# -- items


class InputMessage(Strict):
    type: Literal["message"] = "message"
    id: ItemId | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _says_what_its_role_may(self) -> "InputMessage":
        if self.role != "assistant" and not all(isinstance(part, InputTextPart) for part in self.content):
            raise ValueError(f"a message of role {self.role!r} has parts of type 'input_text' only")
        return self

    def listed(self) -> Item:
        said = self.role == "assistant"
        item = {
            "id": self.id or new_item_id(self.type),
            "type": "message",
            "status": self.status or "completed",
            "role": self.role,
            "content": [_said(part) if said else {"type": "input_text", "text": _text(part)} for part in self.content],
        }
        return item | {"phase": self.phase} if self.phase else item


class FunctionCall(Strict):
    """A call that the model made earlier in the conversation."""

    type: Literal["function_call"]
    id: ItemId | None = None
    call_id: str
    name: FunctionName
    arguments: str
    status: ItemStatus | None = None
    caller: DirectCaller | None = None
    namespace: Unserved = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "function_call",
            "status": self.status or "completed",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


def _output_tag(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


class FunctionCallOutput(Strict):
    """What a call came to."""

    type: Literal["function_call_output"]
    id: ItemId | None = None
    call_id: str
    output: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[TextParts, Tag("<parts>")],
        Discriminator(_output_tag),
    ]
    name: str | None = None
    status: ItemStatus | None = None
    caller: DirectCaller | None = None
    namespace: Unserved = None

    def listed(self) -> Item:
        output = self.output
        item = {
            "id": self.id or new_item_id(self.type),
            "type": "function_call_output",
            "status": self.status or "completed",
            "call_id": self.call_id,
            "output": output
            if isinstance(output, str)
            else [{"type": "input_text", "text": part.text} for part in output],
        }
        return item | {"name": self.name} if self.name is not None else item


class ReasoningItem(Strict):
    """What the model thought earlier in the conversation."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[SummaryPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: Unserved = None
    status: ItemStatus | None = None

    def listed(self) -> Item:
        return {
            "id": self.id or new_item_id(self.type),
            "type": "reasoning",
            "status": self.status or "completed",
            "summary": [part.model_dump() for part in self.summary or ()],
            "content": [part.model_dump() for part in self.content or ()],
        }


class ItemReference(Strict):
    """An item of a response that is kept."""

    type: Literal["item_reference"] | None = None
    id: ItemId


ITEM_TYPES: Final = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _with_type(value: object) -> object:
    """Messages and references need not say that they are one."""
    if isinstance(value, dict) and value.get("type") is None:
        value = value | {"type": "message" if "role" in value else "item_reference" if "id" in value else None}
    return _check_type(value, "an item", ITEM_TYPES)


def _as_items(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(_tag),
    BeforeValidator(_with_type),
]
Input = Annotated[list[InputItem], BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem])]


def _text(part: InputTextPart | OutputTextPart | RefusalPart) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text


def _said(part: InputTextPart | OutputTextPart | RefusalPart) -> Item:
    """As a part of what an assistant said."""
    if isinstance(part, RefusalPart):
        return part.model_dump()
    annotations = part.annotations if isinstance(part, OutputTextPart) else None
    return {"type": "output_text", "text": part.text, "annotations": annotations or [], "logprobs": []}


# -- how to answer


class FlatJsonSchema(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


def _format(value: object) -> object:
    return _check_type(value, "a format", ("text", "json_object", "json_schema"))


TextFormats = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[FlatJsonSchema, Tag("<json_schema>")],
    Discriminator(_tag),
    BeforeValidator(_format),
]


class TextConfig(Strict):
    format: TextFormats | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Strict):
    """Thoughts are told whole, which is the best that `auto` can get; there are no summaries of them."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None
    context: Literal["auto"] | None = None


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None

    def for_chat(self) -> ToolDefinition:
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return ToolDefinition(type="function", function=function)


class NamedFunction(Strict):
    type: Literal["function"]
    name: FunctionName

    def for_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionReference(name=self.name))


def _tool(value: object) -> object:
    return _check_type(value, "a tool", ("function",))


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Annotated[NamedFunction, BeforeValidator(_tool)]], Field(min_length=1)]

    def for_chat(self) -> AllowedToolsChoice:
        allowed = AllowedTools(mode=self.mode, tools=[tool.for_chat() for tool in self.tools])
        return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)


def _choice(value: object) -> object:
    return value if isinstance(value, str) else _check_type(value, "a choice", ("function", "allowed_tools"))


def _choice_tag(value: object) -> str:
    return "<mode>" if isinstance(value, str) else _tag(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedFunction, Tag("<function>")]
    | Annotated[AllowedFunctions, Tag("<allowed_tools>")],
    Discriminator(_choice_tag),
    BeforeValidator(_choice),
]


class CacheOptions(Strict):
    """`prewarm` would be a request for no answer, the comparison one for a diagnosis."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: Literal[False] | None = None
    comparison_response_id: Unserved = None


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # of tools and of input that are refused, so that there is never any
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponseRequest(GenerationRequest):
    """A response to a conversation. Sampling extensions are those of chat completions."""

    input: Input | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    n: Literal[1] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Annotated[list[Annotated[FunctionTool, BeforeValidator(_tool)]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # for the caller's own books
    metadata: Metadata | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Of OpenAI's own tools, of which there are none."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    # which a response repeats, so that they are kept with it
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: CacheRetention | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "ResponseRequest":
        if self.top_logprobs and not self.wants_logprobs:
            message = f"'top_logprobs' is only allowed when 'include' has {LOGPROBS!r}."
            raise ApiError(400, message, param="top_logprobs")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def is_kept(self) -> bool:
        return self.store is not False

    def as_chat(self, messages: Sequence[Message]) -> ChatRequest:
        """The chat completion that answers these messages, behind the instructions, however long its answer.

        Raises ApiError 400 for fields that do not agree with each other.
        """
        common = {name: getattr(self, name) for name in GenerationRequest.model_fields}
        instructions = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        choice = self.tool_choice
        return ChatRequest(
            **common,
            messages=[*instructions, *messages],
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs,
            response_format=self._response_format(),
            tools=None if self.tools is None else [tool.for_chat() for tool in self.tools],
            tool_choice=choice.for_chat() if isinstance(choice, BaseModel) else choice,
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _response_format(self) -> ResponseFormat | None:
        wanted = self.text.format if self.text else None
        if not isinstance(wanted, FlatJsonSchema):
            return wanted
        schema = JsonSchema.model_validate(wanted.model_dump(by_alias=True, exclude={"type"}))
        return JsonSchemaFormat(type="json_schema", json_schema=schema)

    def echo(self) -> dict[str, Any]:
        """The fields that a response repeats, with what they mean where they were not given."""
        reasoning, text, choice = self.reasoning, self.text, self.tool_choice
        return {
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "text": {"format": _dumped_format(text.format if text else None), "verbosity": "medium"},
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "tools": [_dumped_tool(tool) for tool in self.tools or ()],
            "tool_choice": choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "truncation": self.truncation or "disabled",
            "store": self.is_kept,
            "background": False,
            "metadata": self.metadata or {},
            "user": self.user,
            "service_tier": "default",
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }


def _dumped_format(wanted: TextFormat | JsonObjectFormat | FlatJsonSchema | None) -> dict[str, Any]:
    if wanted is None:
        return {"type": "text"}
    return wanted.model_dump(by_alias=True, exclude_none=not isinstance(wanted, FlatJsonSchema))


def _dumped_tool(tool: FunctionTool) -> dict[str, Any]:
    return tool.model_dump(include={"type", "name", "description", "parameters", "strict"})


def parse_response_request(body: object) -> ResponseRequest:
    """Raises ApiError 400 that names the first offending field."""
    return parse(ResponseRequest, body, UNSERVED)


# -- what is kept


class Query(BaseModel):
    """Values in a URL are strings."""

    model_config = ConfigDict(extra="forbid")

    include: list[Includable] | None = None


class RetrieveQuery(Query):
    stream: Literal["false"] | None = None
    include_obfuscation: bool | None = None


class ListQuery(Query):
    after: str | None = None
    """The id of the item before the first one that is wanted."""
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 20
    order: Literal["asc", "desc"] = "desc"


QueryT = TypeVar("QueryT", bound=Query)


def parse_query(model: type[QueryT], given: Iterable[tuple[str, str]]) -> QueryT:
    """Raises ApiError 400 that names the first offending parameter."""
    values: dict[str, Any] = {}
    for key, value in given:
        name = key.removesuffix("[]")
        if name == "include":
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return parse(model, values)
