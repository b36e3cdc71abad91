"""The wire types of chat completions, and the rule for every field: served, accepted because harmless, or refused."""

import secrets
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from api.errors import ApiError
from scheduler.messages import SamplingParams

MAX_STOPS: Final = 16

UNSERVED: Final[dict[str, tuple[object, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""OpenAI's fields that are not served yet, and the values besides null that ask for nothing."""


class Strict(BaseModel):
    """No coercion, no field that nobody reads."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _joined(content: object) -> object:
    """Content as one string. Parts are joined by a line break, as llama-server and vLLM join them."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("a content part is an object with a type")
        if part["type"] != "text":
            raise ValueError(f"content parts of type {part['type']!r} are not served; only 'text' is")
        if not isinstance(part.get("text"), str):
            raise ValueError("a content part of type 'text' has a string 'text'")
        texts.append(part["text"])
    return "\n".join(texts)


def _unserved(value: object) -> object:
    if value is not None and value != []:
        raise ValueError("is not served yet")
    return None


Content = Annotated[str, BeforeValidator(_joined)]
Unserved = Annotated[None, BeforeValidator(_unserved)]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Unserved = None
    function_call: Unserved = None
    tool_calls: Unserved = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        return self

    def for_template(self) -> dict[str, str]:
        fields = {"role": self.role, "content": self.content or self.refusal or ""}
        return fields | {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[Stop], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)]


class ChatRequest(Strict):
    """A chat completion. Null always means the default."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # extensions, by llama-server's names
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    ignore_eos: bool | None = None
    # for the caller's own books
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def requested_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> SamplingParams:
        """What the engine needs, with OpenAI's defaults and a random seed where none is given."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            ignore_eos=bool(self.ignore_eos),
        )


def parse_chat_request(body: object) -> ChatRequest:
    """Raises ApiError 400 that names the first offending field."""
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    for name in UNSERVED.keys() & body.keys():
        value = body[name]
        if value is not None and not any(type(value) is type(ok) and value == ok for ok in UNSERVED[name]):
            raise ApiError(
                400, f"{name!r} is not served yet with this value.", param=name, code="unsupported_parameter"
            )
    try:
        request = ChatRequest.model_validate({key: value for key, value in body.items() if key not in UNSERVED})
    except ValidationError as error:
        raise _refusal(error) from error
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        message = "'max_tokens' and 'max_completion_tokens' cannot both be given; the first is the older name."
        raise ApiError(400, message, param="max_tokens")
    return request


def _refusal(error: ValidationError) -> ApiError:
    details: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = {field for model in (ChatRequest, Message, StreamOptions) for field in model.model_fields}
    param = ""
    for part in details["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in names or details["type"] == "extra_forbidden":  # the rest are pydantic's names for types
            param += f".{part}" if param else part
    if details["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if details["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    reason = details["msg"].removeprefix("Value error, ")
    return ApiError(400, f"Invalid value for '{param}': {reason}.", param=param, code="invalid_value")
