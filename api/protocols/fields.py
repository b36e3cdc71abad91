"""Fields and validation that the requests of several protocols share."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from api.errors import ApiError
from api.protocols.other_servers import Endpoint, OtherField, other_fields
from api.protocols.priorities import PriorityField, wished_class
from api.ranges import Penalty, RepeatPenalty, Share, Stop, Stops, Window
from api.serving.spec import Conversation, GenerationSpec, Texts
from api.tenants.tenant import Priority
from api.text.schemas import MAX_ALTERNATIVES

MAX_CHOICES: Final = 128
MAX_TOP_LOGPROBS: Final = 20
MAX_TOOLS: Final = 1024
MAX_STOP_TOKENS: Final = 1024
MAX_SALT_LENGTH: Final = 512

UnservedFields = Mapping[str, tuple[object, ...]]


class Wire(BaseModel):
    """Input from a client. Unknown fields are errors, except in conversations."""

    unserved: ClassVar[UnservedFields] = {}
    """Fields that are refused, unless they are null or have one of these values, which have no effect."""
    endpoint: ClassVar[Endpoint | None] = None
    """Its endpoint in the table of other servers' fields; None if it has no such fields."""

    # Validators are built at their first use. Together they take 0.2 s, for which the start of the server would wait.
    model_config = ConfigDict(extra="forbid", defer_build=True)

    @property
    def warnings(self) -> list[str]:
        """What the request asks for and does not get, if it is served without that."""
        return []

    @property
    def num_sequences(self) -> int:
        """How many sequences it generates. A request for embeddings counts as one."""
        return 1

    @property
    def sequences_field(self) -> str:
        """The field that asks for many sequences."""
        return "n"

    @property
    def end_user(self) -> str | None:
        """The client's user for whom the request is, if it names one."""
        return None


class Strict(Wire):
    """Input as JSON, without type coercion."""

    model_config = ConfigDict(strict=True)


class Lenient(Wire):
    """A part of a conversation. Unknown fields are ignored: SDKs and other servers add fields to messages."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Query(Wire):
    """The query of a URL, whose values are strings."""

    lists: ClassVar[frozenset[str]] = frozenset()
    """Parameters that may be repeated; `name[]` is the same as `name`."""
    headers: ClassVar[frozenset[str]] = frozenset()
    """Parameters that are headers of the request."""


RequestT = TypeVar("RequestT", bound=Wire)
QueryT = TypeVar("QueryT", bound=Query)


def _no(value: object) -> object:
    if value is not None and value is not False:
        raise ValueError("is not supported")
    return None


No = Annotated[None, BeforeValidator(_no, json_schema_input_type=Literal[False] | None)]
"""A field that is only accepted if it is null or false."""


def _unserved(value: object) -> object:
    if value is not None and value != []:
        raise ValueError("is not supported")
    return None


Unserved = Annotated[None, BeforeValidator(_unserved, json_schema_input_type=None)]
"""A field that is only accepted if it is null or an empty list."""


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: No = None
    """vLLM's: a usage in every chunk."""
    reasoning_summary_delivery: str | None = None
    """Codex's. Accepted without effect: reasoning is never summarized."""


class UsageOptions(Strict):
    """OpenRouter's form of `stream_options.include_usage`."""

    include: bool | None = None


Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_ALTERNATIVES)]
"""Texts of which one is the answer."""


class StructuredOutputs(Strict):
    """vLLM's constraints on an answer. Only one of them can be given."""

    json_: Annotated[dict[str, Any] | bool | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: Unserved = None
    whitespace_pattern: Unserved = None
    disable_fallback: bool | None = None
    """Accepted without effect: llguidance is used for every grammar."""
    disable_any_whitespace: No = None
    disable_additional_properties: No = None


TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
CacheRetention = Literal["in-memory", "in_memory", "24h"]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], MetadataValue], Field(max_length=16)]


class SharedFields(Strict):
    """How a request shares the engine with others."""

    priority: PriorityField | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_LENGTH)] | None = None

    def sharing(self, spec: GenerationSpec) -> GenerationSpec:
        """The request in neutral form, with these fields."""
        return replace(spec, priority=self.wished_class, cache_salt=self.cache_salt or "")

    @property
    def wished_class(self) -> Priority | None:
        """The class that the request asks for; None if it asks for none."""
        return wished_class(self.priority, getattr(self, "service_tier", None))


class GenerationRequest(SharedFields):
    """Null always means the default."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    """0 takes the best token, as `temperature` 0 does."""
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    # extensions with llama-server's names
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=100)] | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: Window | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[list[Stop], Field(max_length=64)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    # extensions with vLLM's names
    repetition_penalty: RepeatPenalty | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOP_TOKENS)] | None = None
    """The answer ends before one of these tokens, but not before it has `min_tokens` tokens."""
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    # an extension with OpenRouter's name
    usage: UsageOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        return self

    @property
    def end_user(self) -> str | None:
        return self.user

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_sequences(self) -> int:
        return self.num_choices

    @property
    def include_usage(self) -> bool:
        return bool((self.stream_options and self.stream_options.include_usage) or (self.usage and self.usage.include))

    def generation(self, prompt: Conversation | Texts) -> GenerationSpec:
        """The request in neutral form, as far as all protocols have the same fields."""
        spec = GenerationSpec(
            prompt,
            num_choices=self.num_choices,
            sampling=self._sampling(),
            dry_breakers=self.dry_sequence_breakers,
            stop=self.stop,
            stop_tokens=self.stop_token_ids or (),
        )
        return self.sharing(spec)

    def _sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "top_n_sigma": None if self.top_n_sigma is None else max(self.top_n_sigma, 0.0),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repeat_penalty": self.repetition_penalty if self.repeat_penalty is None else self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": self.dry_allowed_length,
            "dry_last_n": self.dry_penalty_last_n,
            "xtc_probability": self.xtc_probability,
            "xtc_threshold": self.xtc_threshold,
            "mirostat": self.mirostat,
            "mirostat_tau": self.mirostat_tau,
            "mirostat_eta": self.mirostat_eta,
            "logit_bias": [(int(token), bias) for token, bias in (self.logit_bias or {}).items()] or None,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}


def parse(model: type[RequestT], body: object) -> RequestT:
    """Validates a request. Raises ApiError 400 that names the first invalid field."""
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    others = other_fields(model.endpoint) if model.endpoint is not None else {}
    try:
        return model.model_validate(
            {name: value for name, value in body.items() if _is_read(model, others, name, value)}
        )
    except ValidationError as error:
        raise _refusal(error, model) from error


def _is_read(model: type[Wire], others: Mapping[str, OtherField], name: str, value: object) -> bool:
    """Whether the model reads a field. Raises ApiError 400 if the field is known and refused with this value."""
    if name in model.unserved:
        if value is not None and not any(type(value) is type(ok) and value == ok for ok in model.unserved[name]):
            raise _not_supported(name)
        return False
    other = others.get(name)
    if other is None:
        return True
    if other.asks_for_nothing(value):
        return False
    match other.verdict:
        case "refused":
            raise _not_supported(name, other.note.replace("`", "'"))
        case "accepted":
            if not other.has_type(value):
                message = f"Invalid value for {name!r}: its type must be {other.type_names}."
                raise ApiError(400, message, param=name, code="invalid_value")
            return False
        case "served":
            return True


def _not_supported(name: str, reason: str = "") -> ApiError:
    message = f"{name!r} is not supported with this value{f': {reason}' if reason else ''}."
    return ApiError(400, message, param=name, code="unsupported_parameter")


def parse_query(model: type[QueryT], given: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> QueryT:
    """Validates a query. `headers`: those of the model's `headers` that the request has.

    Raises ApiError 400 that names the first invalid parameter.
    """
    values: dict[str, Any] = dict(headers)
    for key, value in given:
        name = key.removesuffix("[]")
        if name in model.headers:
            raise ApiError(400, f"{name!r} must be a header of the request.", param=name, code="unknown_parameter")
        if name in model.lists:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return parse(model, values)


def _refusal(error: ValidationError, model: type[BaseModel]) -> ApiError:
    details: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = _field_names(model)
    if details["type"] == "extra_forbidden":
        names |= {details["loc"][-1]}
    param, before = "", None
    for part in details["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in names and part != before:  # the rest are pydantic's names for types
            param += f".{part}" if param else part
        before = part
    if details["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if details["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    reason = details["msg"].removeprefix("Value error, ")
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")


@cache
def _field_names(model: type[BaseModel]) -> frozenset[str]:
    """The wire names of all fields of the model and of the models inside it."""
    definitions = model.model_json_schema()
    objects = [definitions, *definitions.get("$defs", {}).values()]
    return frozenset(name for schema in objects for name in schema.get("properties", {}))
