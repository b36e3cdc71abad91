"""The wire types of requests for chat completions."""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from api.errors import ApiError
from api.protocols import hosted
from api.protocols.chat.prediction import Prediction
from api.protocols.conversation import CustomToolDefinition, Messages, Tools, all_tools, warnings
from api.protocols.fields import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    CacheRetention,
    FunctionName,
    Metadata,
    ReasoningEffort,
    Strict,
)
from api.protocols.formats import ResponseFormat
from api.protocols.hosted import HostedTool
from api.protocols.template_fields import TemplateFields
from api.protocols.thought_fields import Budget, ThoughtFields, contradiction
from api.protocols.timings import TimedRequest
from api.protocols.tools import ToolChoice, tool_use
from api.text.dialects import Tool, ToolUse

UNSERVED: Final[dict[str, tuple[object, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""OpenAI's fields that are not supported, and the values besides null that are accepted without effect."""


class FunctionReference(Strict):
    name: FunctionName


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionReference


class NamedCustomTool(Strict):
    type: Literal["custom"]
    custom: FunctionReference


AllowedTool = Annotated[
    Annotated[NamedTool, Tag("<function>")]
    | Annotated[NamedCustomTool, Tag("<custom>")]
    | Annotated[HostedTool, Tag(hosted.HOSTED_TAG)],
    Discriminator(hosted.hosted_tag),
    BeforeValidator(hosted.check_tool("function", "custom")),
]


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1)]

    def names(self) -> list[str]:
        """The names of the allowed tools that exist here."""
        return [_chosen(tool) for tool in self.tools if not isinstance(tool, HostedTool)]


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoices = Annotated[
    Literal["none", "auto", "required"] | NamedTool | NamedCustomTool | AllowedToolsChoice,
    BeforeValidator(hosted.check_choice),
]


def _chosen(tool: NamedTool | NamedCustomTool) -> str:
    return tool.function.name if isinstance(tool, NamedTool) else tool.custom.name


class ReasoningOptions(Strict):
    """OpenRouter's and Ollama's form of the fields about reasoning."""

    effort: ReasoningEffort | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    """The opposite of `include_reasoning`."""
    max_tokens: Budget | None = None
    """The same as `reasoning_budget`. A positive value turns reasoning on, if nothing else says it."""


class ChatRequest(TimedRequest, TemplateFields, ThoughtFields):
    """A request for chat completions."""

    unserved = UNSERVED
    endpoint = "chat"

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    tools: Annotated[Tools, Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoices | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    reasoning: ReasoningOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = None
    # accepted without effect
    metadata: Metadata | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: CacheRetention | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            message = "'max_tokens' (the older name) and 'max_completion_tokens' cannot both be given."
            raise ApiError(400, message, param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        if self.reasoning_effort and self.reasoning and self.reasoning.effort not in (None, self.reasoning_effort):
            raise contradiction("reasoning_effort", "reasoning.effort", param="reasoning")
        self.thought_budget()
        if self.leaves_out_reasoning() and self.logprobs:
            message = "'logprobs' would return the reasoning, which is left out of the answer. Leave out 'logprobs'."
            raise ApiError(400, message, param="logprobs", code="invalid_value")
        self.tool_use()
        return self

    @property
    def end_user(self) -> str | None:
        return self.user or self.safety_identifier

    @property
    def requested_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of most probable tokens to return with each token; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def template_variables(self) -> dict[str, Any]:
        """Raises ApiError 400 if `enable_thinking` is given twice with different values."""
        reasoning = self.reasoning or ReasoningOptions()
        return self.variables(
            self.reasoning_effort or reasoning.effort,
            enabled=reasoning.enabled,
            budget=self.thought_budget(),
            asks=reasoning.max_tokens is not None,
        )

    def thought_budget(self) -> int | None:
        """Maximum number of reasoning tokens; None for no limit."""
        return self.budget(self.reasoning.max_tokens if self.reasoning else None)

    def leaves_out_reasoning(self) -> bool:
        return self.hides_reasoning(self.reasoning.exclude if self.reasoning else None)

    def all_tools(self) -> list[Tool]:
        return all_tools(self.tools)

    def custom_names(self) -> frozenset[str]:
        """The names of the custom tools."""
        return frozenset(tool.custom.name for tool in self.tools or () if isinstance(tool, CustomToolDefinition))

    @property
    def warnings(self) -> list[str]:
        return warnings(self.messages, self.tools)

    def tool_use(self) -> ToolUse | None:
        """The tools that may be called. Raises ApiError 400 if the choice does not fit them."""
        return tool_use(self.all_tools(), self._tool_choice(), hosted.names_of(self.tools or ()))

    def _tool_choice(self) -> ToolChoice:
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedTool() | NamedCustomTool() as named:
                return ToolChoice("required", [_chosen(named)], parallel=False)
            case AllowedToolsChoice(allowed_tools=allowed):
                return ToolChoice(allowed.mode, allowed.names(), parallel)
            case None:
                return ToolChoice(parallel=parallel)
            case mode:
                return ToolChoice(mode, parallel=parallel)
