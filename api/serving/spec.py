"""What a request asks for, in no protocol's words. Each protocol makes it from its own wire type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from api.text.dialects import Tool, ToolUse


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made earlier in the conversation."""

    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, developer, user, assistant or tool."""
    content: str = ""
    tool_calls: Sequence[ToolCall] = ()
    """Of the assistant."""
    reasoning: str | None = None
    """The assistant's thoughts."""
    tool_call_id: str | None = None
    """The call that a tool answers."""
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: in OpenAI's form."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        optional = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning}
        fields |= {key: value for key, value in optional.items() if value is not None}
        if self.tool_calls:
            fields["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return fields


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the model's chat template writes."""

    noun: ClassVar[str] = "messages"
    """What errors call it."""
    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    """Those that the prompt lists."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """For the template, which reads those that it knows."""
    prefill: str = ""
    """The beginning of the answer, which the model continues."""
    param: str = "messages"
    """The request's field that errors name."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts that the model reads as they are, control tokens included."""

    noun: ClassVar[str] = "prompt"
    prompts: Sequence[str] | Sequence[list[int]]
    """Texts or tokens."""
    suffix: str | None = None
    """The text behind the answer, for models that fill in the middle."""
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar that an answer must match, and the request's field that it comes from."""

    param: str
    rule: str = ""
    """The right-hand side of a rule in llguidance's Lark, which may stand inside a larger grammar."""
    grammar: str = ""
    """A grammar of its own, which may not."""

    def whole(self) -> str:
        return self.grammar or f"start: {self.rule}"


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Answers to generate. What is None or missing is left to the model's own defaults, then to the server's."""

    prompt: Conversation | Texts
    num_choices: int = 1
    """Answers to each prompt."""
    max_tokens: int | None = None
    """Tokens of an answer, at most."""
    default_max_tokens: int | None = None
    """The same where neither the request nor the model says a number; None for all that the context has room for."""
    may_shorten: bool = False
    """Whether an answer may end where the context does. Else a request for more tokens than it has room for fails."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams."""
    dry_breakers: Sequence[str] | None = None
    """Texts that no repetition reaches across."""
    stop: Sequence[str] | None = None
    constraint: Constraint | None = None
    tool_use: ToolUse | None = None
    """Which tools an answer may call, or must."""
    logprobs: int | None = None
    """How many of the best tokens to return with each token; None for no probabilities at all."""
    score_prompt: bool = False
    """Whether to return the probabilities of the prompt's tokens, too."""
