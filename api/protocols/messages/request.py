"""The wire types of requests for Anthropic's messages."""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from api.errors import ApiError
from api.protocols.fields import MAX_TOOLS, FunctionName, No, Strict, Unserved
from api.protocols.kinds import check_type, tag
from api.ranges import MAX_STOPS, Share, Stop

UNSERVED: Final[dict[str, tuple[object, ...]]] = {
    "billing_policy": (),
    "compaction": (),
    "container": (),
    "context_management": ({}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "diagnostics": ({}, {"previous_message_id": None}),
    "fallback_credit_token": (),
    "fallbacks": ([],),
    "inference_geo": ("global",),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "thread": (),
}
"""Anthropic's fields that are not supported, and the values besides null that are accepted without effect."""


def _as_blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _direct(value: object) -> object:
    if value not in (None, {"type": "direct"}, ["direct"]):
        raise ValueError("only direct calls are supported")
    return None


CacheControl = dict[str, Any] | None
"""Accepted without effect: every prompt is cached and shared anyway, as long as there is memory."""


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl = None
    citations: Unserved = None


Texts = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolUseBlock(Strict):
    """A call that the model made earlier in the conversation."""

    type: Literal["tool_use"]
    id: str
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl = None
    caller: Annotated[None, BeforeValidator(_direct, json_schema_input_type=dict[str, Any] | None)] = None
    toolset_name: Unserved = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    """Whether the tool failed. The result then begins with "Error"."""
    cache_control: CacheControl = None
    toolset_name: Unserved = None


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Strict):
    """Accepted and ignored: the content is encrypted."""

    type: Literal["redacted_thinking"]
    data: str


def _user_block(value: object) -> object:
    return check_type(value, "a user block", ("text", "tool_result"))


def _assistant_block(value: object) -> object:
    return check_type(value, "an assistant block", ("text", "tool_use", "thinking", "redacted_thinking"))


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(tag),
    BeforeValidator(_user_block),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")],
    Discriminator(tag),
    BeforeValidator(_assistant_block),
]


class SystemTurn(Strict):
    role: Literal["system"]
    content: Texts


class UserTurn(Strict):
    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[UserBlock])]


class AssistantTurn(Strict):
    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[AssistantBlock])
    ]


ROLES: Final = ("system", "user", "assistant")


def _turn(value: object) -> object:
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(role, str):
        raise ValueError("a message must be an object with a role")
    if role not in ROLES:
        raise ValueError(f"a message of role {role!r} is not supported; supported roles: {', '.join(map(repr, ROLES))}")
    return value


def _role_tag(value: object) -> str:
    return f"<{value['role']}>" if isinstance(value, dict) else ""


Turn = Annotated[
    Annotated[SystemTurn, Tag("<system>")]
    | Annotated[UserTurn, Tag("<user>")]
    | Annotated[AssistantTurn, Tag("<assistant>")],
    Discriminator(_role_tag),
    BeforeValidator(_turn),
]


class CustomTool(Strict):
    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl = None
    eager_input_streaming: bool | None = None
    """Accepted without effect: input is always streamed while it is generated."""
    allowed_callers: Annotated[
        None, BeforeValidator(_direct, json_schema_input_type=list[Literal["direct"]] | None)
    ] = None
    defer_loading: No = None
    input_examples: Unserved = None


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_a_tool(self) -> "ToolChoice":
        if (self.name is None) == (self.type == "tool"):
            raise ValueError("'name' is required with type 'tool', and not allowed with other types")
        return self


class Thinking(Strict):
    """`budget_tokens` is accepted without effect: `max_tokens` limits reasoning and answer together."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonOutput(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutput | None = None
    task_budget: Unserved = None


class Metadata(Strict):
    user_id: str | None = None


class CountTokensRequest(Strict):
    """The fields of a request that become its prompt."""

    unserved = UNSERVED

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Texts | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutput | None = None
    """The older name of `output_config.format`."""
    cache_control: CacheControl = None

    @model_validator(mode="after")
    def _has_one_format(self) -> "CountTokensRequest":
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            message = "'output_format' (the older name) and 'output_config.format' cannot both be given."
            raise ApiError(400, message, param="output_format", code="invalid_value")
        return self

    @property
    def schema_to_match(self) -> dict[str, Any] | None:
        wanted = self.output_format or (self.output_config and self.output_config.format)
        return wanted.schema_ if wanted else None


class MessagesRequest(CountTokensRequest):
    """A request for the answer to a conversation."""

    max_tokens: Annotated[int, Field(ge=0)]
    """Maximum number of tokens of the answer. An answer that fills the context earlier ends with
    `model_context_window_exceeded`. With 0, the prompt is only computed and cached."""
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: Share | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
