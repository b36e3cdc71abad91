"""Requests in neutral form. Each protocol builds them from its own wire types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from api.serving.observer import RequestRecord
from api.serving.tickets import Ticket
from api.tenants.tenant import LOCAL, Priority, Tenant
from api.text.dialects import Tool, ToolUse
from api.text.guard import FUNCTION
from api.text.template import PromptEnd


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made earlier in the conversation."""

    id: str
    name: str
    arguments: str
    """JSON text; or any text, if the model's answer was invalid or was cut."""

    def for_template(self) -> dict[str, Any]:
        """The call in OpenAI's form. Without any text it has no arguments."""
        arguments = self.arguments if self.arguments.strip() else "{}"
        return {"id": self.id, "type": FUNCTION, "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, developer, user, assistant or tool."""
    content: str = ""
    tool_calls: Sequence[ToolCall] = ()
    """In an assistant's message."""
    reasoning: str | None = None
    """The assistant's reasoning."""
    tool_call_id: str | None = None
    """In a tool's message: the id of the call whose result it is."""
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message in OpenAI's form, which chat templates read."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        optional = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning}
        fields |= {key: value for key, value in optional.items() if value is not None}
        if self.tool_calls:
            fields["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return fields


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the model's chat template renders."""

    noun: ClassVar[str] = "messages"
    """Its name in error messages."""
    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    """The tools that the prompt lists."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the template, which may ignore them."""
    prefill: str = ""
    """The beginning of the answer, which the model continues."""
    param: str = "messages"
    """The request's field that errors name."""
    end: PromptEnd = PromptEnd.NEW_TURN

    @property
    def begun(self) -> str:
        """The beginning of the answer that the prompt already has."""
        return self.messages[-1].content if self.end is PromptEnd.OPEN_MESSAGE else self.prefill


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts that are tokenized as they are, control tokens included."""

    noun: ClassVar[str] = "prompt"
    prompts: Sequence[str] | Sequence[list[int]]
    """Texts or tokens."""
    suffix: str | None = None
    """The text after the answer, for models that fill in the middle."""
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must match, and the request's field that it comes from."""

    param: str
    text: Callable[[], str]
    """Makes the grammar in llguidance's Lark. It may take seconds, so call it in a thread. Raises ApiError 400."""
    is_whole: bool = False
    """Whether it is a complete grammar, which cannot be part of a larger one, and not the right-hand side of a rule."""

    def whole(self) -> str:
        return self.text() if self.is_whole else f"start: {self.text()}"


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Answers to generate. For None or missing values the model's own defaults apply, then the server's."""

    prompt: Conversation | Texts
    num_choices: int = 1
    """Number of answers to each prompt."""
    max_tokens: int | None = None
    """Maximum number of tokens of an answer. The end of the context may shorten it."""
    default_max_tokens: int | None = None
    """max_tokens if neither the request nor the model sets it. None means all that the context has room for."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams."""
    dry_breakers: Sequence[str] | None = None
    """Texts at which the DRY penalty stops matching repetitions."""
    stop: Sequence[str] | None = None
    stop_tokens: Sequence[int] = ()
    """Tokens that end an answer, without being a part of it, once it has `min_tokens` tokens."""
    constraint: Constraint | None = None
    tool_use: ToolUse | None = None
    """Which tools an answer may or must call."""
    logprobs: int | None = None
    """Number of most probable tokens to return with each token; None for no log probabilities."""
    score_prompt: bool = False
    """Whether to return the log probabilities of the prompt's tokens, too."""
    reasoning_budget: int | None = None
    """Maximum number of reasoning tokens, after which the reasoning's closing mark is forced. None for no limit."""
    tenant: Tenant = LOCAL
    """Who is charged for the answers."""
    priority: Priority | None = None
    """The class of the request; None for the tenant's. It can only be lower than the tenant's."""
    cache_salt: str = ""
    """Prefixes are shared only with requests of the same salt."""
    record: RequestRecord = field(default_factory=RequestRecord, repr=False, compare=False)
    """Where the stations of the request are recorded."""
    ticket: Ticket = field(default_factory=Ticket, repr=False, compare=False)
    """Counts the request toward limits."""
    prediction: str = ""
    """Text that an answer probably contains. It only makes the answer faster."""
    keeps_reasoning: bool = False
    """Whether reasoning and its marks are part of the text instead of being separated from it."""
