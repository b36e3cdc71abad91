"""The wire types of requests to the Responses API."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from api.errors import ApiError
from api.protocols import hosted
from api.protocols.custom import is_hint
from api.protocols.fields import (
    MAX_TOP_LOGPROBS,
    CacheRetention,
    GenerationRequest,
    Metadata,
    No,
    Query,
    ReasoningEffort,
    Strict,
    Unserved,
)
from api.protocols.formats import JsonObjectFormat, TextFormat
from api.protocols.hosted import HostedTool
from api.protocols.kinds import check_type, tag
from api.protocols.priorities import ServedTier
from api.protocols.responses.input import Input, left_out_type, media_of
from api.protocols.responses.items import called
from api.protocols.responses.tools import Namespace, ToolChoice, Tools, custom_tools, full_name
from api.protocols.template_fields import TemplateVariables
from api.protocols.thought_fields import Budget, BudgetFields, ThoughtFields
from api.protocols.warnings import listing
from scheduler.messages import SamplingParams

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
"""OpenAI's fields that are not supported, and the values besides null that are accepted without effect."""
UNSERVED_IN_COUNTS: Final[dict[str, tuple[object, ...]]] = {"conversation": (), "personality": ()}
LOGPROBS: Final = "message.output_text.logprobs"
MAX_LISTED: Final = 100
"""Maximum number of items on one page."""

# -- options of the answer


class FlatJsonSchema(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


def _format(value: object) -> object:
    return check_type(value, "a format", ("text", "json_object", "json_schema"))


TextFormats = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[FlatJsonSchema, Tag("<json_schema>")],
    Discriminator(tag),
    BeforeValidator(_format),
]


class TextConfig(Strict):
    format: TextFormats | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted without effect. The answer has a warning unless it is `medium`."""


class ReasoningConfig(Strict):
    """Summaries are accepted without effect: the full reasoning is returned instead."""

    effort: ReasoningEffort | None = None
    max_tokens: Budget | None = None
    """OpenRouter's name of `reasoning_budget`."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    mode: Literal["standard"] | None = None
    context: Literal["auto"] | None = None


class CacheOptions(Strict):
    """Not supported: `prewarm` (a request without an answer), `comparison_response_id` (a request for a diagnosis)."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: No = None
    comparison_response_id: Unserved = None


Includable = Literal[
    "message.output_text.logprobs",
    # never returned: reasoning is not encrypted, and these tools and inputs are not supported
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class InputTokensRequest(BudgetFields):
    """The fields of a request that become its prompt."""

    unserved = UNSERVED_IN_COUNTS

    model: str | None = None
    input: Input | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    enable_thinking: bool | None = None

    def thought_budget(self) -> int | None:
        """Maximum number of reasoning tokens; None for no limit. Raises ApiError 400 for two different budgets."""
        return self.budget(self.reasoning.max_tokens if self.reasoning else None)

    @property
    def warnings(self) -> list[str]:
        tools, items, text = self.tools or (), self.input or (), self.text
        return [
            *hosted.tools_left_out(tools),
            *listing("grammars not enforced", (name for name, tool in custom_tools(tools) if is_hint(tool.grammar))),
            *hosted.content_left_out(media for item in items for media in media_of(item)),
            *listing("items left out", (kind for item in items if (kind := left_out_type(item)))),
            *listing("without effect", ["text.verbosity"] if text and text.verbosity not in (None, "medium") else []),
        ]


class ResponseRequest(InputTokensRequest, GenerationRequest, ThoughtFields):
    """A request for a response to a conversation. Sampling extensions are those of chat completions."""

    unserved = UNSERVED
    endpoint = "responses"

    model: str
    n: Literal[1] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    # no effect on the answer
    metadata: Metadata | None = None
    client_metadata: dict[str, str] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Limits calls of OpenAI's own tools, which do not exist here."""
    # repeated in the response and stored with it, hence the limits
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: CacheRetention | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "ResponseRequest":
        if self.top_logprobs and not self.wants_logprobs:
            message = f"'top_logprobs' is only allowed when 'include' has {LOGPROBS!r}."
            raise ApiError(400, message, param="top_logprobs")
        self.thought_budget()
        self.hides_reasoning()
        return self

    @property
    def end_user(self) -> str | None:
        return self.user or self.safety_identifier

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def is_kept(self) -> bool:
        return self.store is not False

    def custom_names(self) -> frozenset[str]:
        """The names with which the model calls custom tools."""
        return frozenset(name for name, _ in custom_tools(self.tools))

    def names_of_calls(self) -> dict[str, dict[str, str]]:
        """The wire names of the functions in namespaces, by the names with which the model calls them."""
        return {
            full_name(each.name, tool.name): called(tool.name, each.name)
            for each in self.tools or ()
            if isinstance(each, Namespace)
            for tool in each.tools
        }

    def echo(self, params: SamplingParams, max_output_tokens: int | None, tier: ServedTier) -> dict[str, Any]:
        """The fields that a response repeats. Fields that were not given have the values that were used."""
        reasoning, text, choice = self.reasoning, self.text, self.tool_choice
        return {
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "max_output_tokens": max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "text": {
                "format": _dumped_format(text.format if text else None),
                "verbosity": (text and text.verbosity) or "medium",
            },
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "tools": [tool.echo() for tool in self.tools or () if not isinstance(tool, HostedTool)],
            "tool_choice": choice.model_dump(exclude_none=True) if isinstance(choice, BaseModel) else choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "truncation": self.truncation or "disabled",
            "store": self.is_kept,
            "background": False,
            "metadata": self.metadata or {},
            "user": self.user,
            "service_tier": tier,
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }


def _dumped_format(wanted: TextFormat | JsonObjectFormat | FlatJsonSchema | None) -> dict[str, Any]:
    if wanted is None:
        return {"type": "text"}
    return wanted.model_dump(by_alias=True, exclude_none=not isinstance(wanted, FlatJsonSchema))


# -- stored responses


class _Including(Query):
    lists = frozenset({"include"})

    include: list[Includable] | None = None


class RetrieveQuery(_Including):
    stream: Literal["false"] | None = None
    include_obfuscation: bool | None = None


class ListQuery(_Including):
    after: str | None = None
    """The id of the item after which the page begins."""
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 20
    order: Literal["asc", "desc"] = "desc"
