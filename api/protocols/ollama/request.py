"""The wire types of Ollama's requests."""

import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from api.errors import ApiError
from api.protocols.conversation import ToolDefinition
from api.protocols.fields import MAX_TOOLS, MAX_TOP_LOGPROBS, Lenient, SharedFields, Strict, UnservedFields
from api.protocols.ollama.options import OllamaOptions
from api.protocols.warnings import listing
from api.text.dialects import Tool

MAX_INPUTS: Final = 2048
_DURATION: Final = re.compile(r"[-+]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h)?)+")
_CUTTING: Final[dict[str, tuple[object, ...]]] = {"truncate": (False,), "shift": (False,)}
"""Ollama cuts conversations that are too long, if these are true. This server refuses them."""


def _duration(value: str | float) -> str | float:
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise ValueError("must be a duration such as '5m', or a number of seconds")
    return value


def _default_stream(value: object) -> object:
    return True if value is None else value


def _no_images(value: object) -> None:
    if value:
        raise ValueError("images are not supported; this server reads text only")


KeepAlive = Annotated[str | float, AfterValidator(_duration)]
Stream = Annotated[bool, BeforeValidator(_default_stream, json_schema_input_type=bool | None)]
Format = Annotated[Literal["", "json"] | dict[str, Any], Field(union_mode="left_to_right")]
Think = bool | Literal["low", "medium", "high", "max"]
NoImages = Annotated[None, BeforeValidator(_no_images, json_schema_input_type=list[str] | None)]


class OllamaRequest(SharedFields):
    """What all of Ollama's requests to a model have."""

    model: str
    options: OllamaOptions | None = None
    keep_alive: KeepAlive | None = None
    """Accepted without effect: the flags of the server set how long a model stays in memory."""

    @property
    def given_options(self) -> OllamaOptions:
        return self.options or OllamaOptions()

    @property
    def unloads(self) -> bool:
        """Whether the model should leave memory after the request."""
        return self.keep_alive is not None and not re.search("[1-9]", str(self.keep_alive))

    @property
    def warnings(self) -> list[str]:
        kept = ["keep_alive"] if self.keep_alive is not None else []
        return listing("decided by the server's flags", [*self.given_options.without_effect, *kept])


class _Generating(OllamaRequest):
    stream: Stream = True
    format: Format | None = None
    think: Think | None = None
    """Whether, or how much, the model reasons. By default its template decides."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _has_logprobs(self) -> "_Generating":
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Number of most probable tokens to return with each token; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def schema_to_match(self) -> dict[str, Any] | None:
        if isinstance(self.format, dict):
            return self.format
        return {"type": "object"} if self.format == "json" else None


class OllamaFunctionCall(Lenient):
    """`name` may be one that a tool cannot have: models make mistakes."""

    name: str
    arguments: dict[str, Any] | str | None = None


class OllamaToolCall(Lenient):
    """A call that the model made earlier in the conversation. Older clients send no id."""

    id: str | None = None
    function: OllamaFunctionCall


class OllamaMessage(Lenient):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: NoImages = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    """In a tool's message: the name of the tool."""
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _calls_as_the_assistant(self) -> "OllamaMessage":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} cannot have tool calls")
        return self


class OllamaChatRequest(_Generating):
    """A request for the answer to a conversation. Without messages it only loads the model."""

    unserved: ClassVar[UnservedFields] = _CUTTING

    messages: list[OllamaMessage] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None

    def all_tools(self) -> list[Tool]:
        return [tool.neutral() for tool in self.tools or ()]


class OllamaGenerateRequest(_Generating):
    """A request for the answer to a prompt. Without a prompt it only loads the model."""

    unserved: ClassVar[UnservedFields] = _CUTTING | {
        "context": ([],),
        "template": ("",),
        "width": (0,),
        "height": (0,),
        "steps": (0,),
    }

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    """The text after the answer, for models that fill in the middle."""
    raw: bool | None = None
    """Whether the prompt is used as it is, without the model's template."""
    images: NoImages = None

    @property
    def is_text(self) -> bool:
        """Whether the prompt does not become a conversation."""
        return bool(self.raw or self.suffix)

    @model_validator(mode="after")
    def _is_consistent(self) -> "OllamaGenerateRequest":
        given = {"system": self.system, "think": self.think}
        extra = next((name for name, value in given.items() if value), None)
        if self.is_text and extra is not None:
            reason = "raw" if self.raw else "suffix"
            message = f"{extra!r} cannot be combined with {reason!r}, which uses no template."
            raise ApiError(400, message, param=extra, code="invalid_value")
        return self


class OllamaEmbedRequest(OllamaRequest):
    """A request for embeddings of texts. Without a text it only loads the model."""

    input: str | Annotated[list[str], Field(max_length=MAX_INPUTS)]
    truncate: bool | None = None
    """Whether texts that are too long are cut, as by default. Otherwise they are refused."""
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def inputs(self) -> dict[str, str | list[int]]:
        """The texts by their wire names."""
        if isinstance(self.input, str):
            return {"input": self.input} if self.input else {}
        return {f"input[{index}]": text for index, text in enumerate(self.input)}


class OllamaEmbeddingsRequest(OllamaRequest):
    """The older form, with one text."""

    prompt: str | None = None


class OllamaShowRequest(Strict):
    model: str | None = None
    name: str | None = None
    """The older name of `model`."""
    verbose: bool | None = None
    """Accepted without effect: there are no longer values to add."""
    system: None = None
    template: None = None

    @model_validator(mode="after")
    def _names_a_model(self) -> "OllamaShowRequest":
        if not (self.model or self.name):
            raise ApiError(
                400, "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            )
        return self

    @property
    def wanted(self) -> str:
        return self.model or self.name or ""
