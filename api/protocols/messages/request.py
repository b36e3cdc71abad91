"""The wire types of requests for Anthropic's messages."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from api.errors import ApiError
from api.protocols import hosted
from api.protocols.fields import MAX_TOOLS, FunctionName, Lenient, SharedFields, Strict, Unserved
from api.protocols.hosted import HostedTool
from api.protocols.kinds import check_type, not_supported, type_of
from api.protocols.messages.media import HISTORY_TAG, HistoryBlock, MediaBlock, history_type
from api.protocols.warnings import listing
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
    if value not in (None, {"type": "direct"}) and not (isinstance(value, list) and "direct" in value):
        raise ValueError("only direct calls are supported")
    return None


CacheControl = dict[str, Any] | None
"""Accepted without effect: every prompt is cached and shared anyway, as long as there is memory."""


class TextBlock(Lenient):
    type: Literal["text"]
    text: str
    cache_control: CacheControl = None
    citations: list[Any] | None = None
    """Accepted and ignored: the sources of an earlier answer."""


def _result_block(value: object) -> object:
    return value if hosted.media_type(value) else check_type(value, "a block of a result", ("text",))


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[MediaBlock, Tag(hosted.MEDIA_TAG)],
    Discriminator(hosted.content_tag),
    BeforeValidator(_result_block),
]
Texts = Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolUseBlock(Lenient):
    """A call that the model made earlier in the conversation."""

    type: Literal["tool_use"]
    id: str
    name: str
    """It may be one that a tool cannot have: models make mistakes."""
    input: dict[str, Any] | str | None
    """Some clients send JSON text."""
    cache_control: CacheControl = None
    caller: dict[str, Any] | None = None
    toolset_name: str | None = None
    """Both accepted and ignored: the call has been made."""


class ToolResultBlock(Lenient):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[list[ResultBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[ResultBlock])] | None
    ) = None
    is_error: bool | None = None
    """Whether the tool failed. The result then begins with "Error"."""
    cache_control: CacheControl = None
    toolset_name: str | None = None


class ThinkingBlock(Lenient):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Lenient):
    """Accepted and ignored: the content is encrypted."""

    type: Literal["redacted_thinking"]
    data: str


USER_BLOCKS: Final = ("text", "tool_result")


def _user_block(value: object) -> object:
    return value if hosted.media_type(value) else check_type(value, "a user block", USER_BLOCKS)


def _assistant_block(value: object) -> object:
    if hosted.media_type(value) or history_type(value):
        return value
    return check_type(value, "an assistant block", ("text", "tool_use", "thinking", "redacted_thinking"))


def _assistant_tag(value: object) -> str:
    return HISTORY_TAG if history_type(value) else hosted.content_tag(value)


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[MediaBlock, Tag(hosted.MEDIA_TAG)],
    Discriminator(hosted.content_tag),
    BeforeValidator(_user_block),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[MediaBlock, Tag(hosted.MEDIA_TAG)]
    | Annotated[HistoryBlock, Tag(HISTORY_TAG)],
    Discriminator(_assistant_tag),
    BeforeValidator(_assistant_block),
]


class SystemTurn(Lenient):
    role: Literal["system"]
    content: Texts


class UserTurn(Lenient):
    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[UserBlock])]


class AssistantTurn(Lenient):
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
    defer_loading: bool | None = None
    """Accepted without effect: every tool is listed from the beginning."""
    input_examples: Unserved = None


def _tool_tag(value: object) -> str:
    return hosted.HOSTED_TAG if hosted.is_hosted(value) else "<custom>"


def _tool(value: object) -> object:
    return value if hosted.is_hosted(value) or type_of(value) is None else check_type(value, "a tool", ("custom",))


Tool = Annotated[
    Annotated[CustomTool, Tag("<custom>")] | Annotated[HostedTool, Tag(hosted.HOSTED_TAG)],
    Discriminator(_tool_tag),
    BeforeValidator(_tool),
]


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
    """Whether to think, and for how many tokens at most.

    Anthropic needs a budget of 1024 at least, and less than `max_tokens`. Here every budget is served: small models
    think less, and `max_tokens` limits thinking and answer together anyway.
    """

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _needs_its_budget(self) -> "Thinking":
        if self.type == "disabled" and self.budget_tokens is not None:
            raise ValueError("'budget_tokens' is not allowed with type 'disabled'")
        return self


class JsonOutput(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutput | None = None
    task_budget: Unserved = None


class Metadata(Strict):
    user_id: str | None = None


def _only_text_in_the_newest_question(turns: list[Turn]) -> list[Turn]:
    """Raises ApiError 400 if the newest user message has a block that is not text.

    In a message with results of tools such a block belongs to the results.
    """
    questions = [index for index, turn in enumerate(turns) if turn.role == "user"]
    blocks = turns[questions[-1]].content if questions else []
    if any(isinstance(block, ToolResultBlock) for block in blocks):
        return turns
    for index, block in enumerate(blocks):
        if isinstance(block, MediaBlock) and not block.is_text:
            reason = not_supported("a user block", block.type, USER_BLOCKS)
            raise hosted.refusal(f"messages[{questions[-1]}].content[{index}]", reason)
    return turns


class CountTokensRequest(Strict):
    """The fields of a request that become its prompt."""

    unserved = UNSERVED

    model: str
    messages: Annotated[list[Turn], Field(min_length=1), AfterValidator(_only_text_in_the_newest_question)]
    system: Texts | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutput | None = None
    """The older name of `output_config.format`."""
    cache_control: CacheControl = None

    @property
    def warnings(self) -> list[str]:
        blocks = [block for turn in self.messages for block in turn.content]
        parts = [
            part
            for block in blocks
            for part in (block.content or () if isinstance(block, ToolResultBlock) else (block,))
            if isinstance(part, MediaBlock) and not part.is_text
        ]
        return [
            *hosted.tools_left_out(self.tools or ()),
            *hosted.content_left_out(part.type for part in parts),
            *listing("blocks left out", (b.type for b in blocks if isinstance(b, HistoryBlock) and b.text is None)),
        ]

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


class MessagesRequest(CountTokensRequest, SharedFields):
    """A request for the answer to a conversation."""

    max_tokens: Annotated[int, Field(ge=0)]
    """Maximum number of tokens of the answer. An answer that fills the context earlier ends with
    `model_context_window_exceeded`. With 0, the prompt is only computed and cached."""
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    @property
    def end_user(self) -> str | None:
        return self.metadata.user_id if self.metadata else None
