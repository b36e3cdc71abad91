"""A model's defaults, read from the model.yaml beside it. Its keys are those of cortex.cpp."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.models.files import SETTINGS_NAME, ModelFilesError
from api.ranges import Penalty, RepeatPenalty, Share, Stops, Window

IGNORED: Final = frozenset(
    {
        *("name", "model", "version", "id", "object", "owned_by", "created", "engine", "files", "size", "author"),
        *("os", "gpu_arch", "quantization_method", "precision", "tp", "trtllm_version", "text_model", "metadata"),
        *("stream", "n_parallel", "n_parallels", "n_probs", "dynatemp_exponent"),
        *("system_template", "user_template", "ai_template"),
    }
)
"""Keys that are ignored: metadata of the model, and settings of other engines."""
NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "dynatemp_range": (0, 0.0),
    "tfs_z": (1, 1.0),
    "penalize_nl": (False,),
    "min_keep": (0, 1),
    "grammar": ("",),
}
"""Keys that are not supported, with the values, besides null, that are accepted because they have no effect."""

_PROMPT: Final = "{prompt}"
_SYSTEM: Final = "{system_message}"
_OPENING: Final = (
    "{% if messages[0].role not in ('system', 'developer') %}{{ system }}{% endif %}{% for message in messages %}"
)
_WITHOUT_SYSTEM: Final = "{% for message in messages if message.role not in ('system', 'developer') %}"
_TURNS: Final = (
    "{{ {'system': system, 'developer': system, 'assistant': answer}.get(message.role, question) + message.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ answer }}{% endif %}"
)
MIN_CTX_LEN: Final = 64


class DefaultsError(ModelFilesError):
    """A model.yaml that cannot be used. The message has its path, the key and the reason."""


def _template_of_cortex(template: str) -> str:
    if template and _PROMPT not in template:
        raise ValueError(f"must contain {_PROMPT}")
    return template


class ModelDefaults(BaseModel):
    """The values of a model.yaml. None means that a value is not set."""

    model_config = ConfigDict(strict=True, extra="forbid")

    stop: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Share | None = None
    typ_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: Window | None = None
    mirostat: bool | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    ignore_eos: bool | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    """-1 is a random seed."""
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    """-1 and 0 mean no limit."""
    ctx_len: Annotated[int, Field(ge=0)] | None = None
    """0 is the built-in default."""
    ngl: Annotated[int, Field(ge=-1)] | None = None
    """Layers on the GPU; -1 is all."""
    prompt_template: Annotated[str, AfterValidator(_template_of_cortex)] | None = None
    """cortex.cpp's format: the start of a conversation, with the placeholders {system_message} and {prompt}."""
    chat_template: str | None = None
    """Jinja, as in GGUF files."""

    @model_validator(mode="after")
    def _has_one_template(self) -> "ModelDefaults":
        if self.prompt_template and self.chat_template:
            raise ValueError("prompt_template and chat_template exclude each other")
        if self.ctx_len and self.ctx_len < MIN_CTX_LEN:
            raise ValueError(f"ctx_len must be at least {MIN_CTX_LEN}")
        return self

    @property
    def template(self) -> str | None:
        """The Jinja chat template that replaces the one of the model's file; None if there is none."""
        return jinja(self.prompt_template) if self.prompt_template else self.chat_template or None

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of an answer if the request sets no limit; None for no limit."""
        return self.max_tokens if self.max_tokens and self.max_tokens > 0 else None

    def sampling(self) -> dict[str, Any]:
        """The fields of the engine's SamplingParams that are set."""
        own: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "typical_p": self.typ_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repeat_penalty": self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "mirostat": None if self.mirostat is None else int(self.mirostat),
            "mirostat_tau": self.mirostat_tau,
            "mirostat_eta": self.mirostat_eta,
            "ignore_eos": self.ignore_eos,
            "seed": None if self.seed == -1 else self.seed,
        }
        return {key: value for key, value in own.items() if value is not None}


NOTHING: Final = ModelDefaults()
"""The defaults of a model without a model.yaml."""


def read_defaults(model_path: Path) -> ModelDefaults:
    """The defaults of the model in this file. Raises DefaultsError if its model.yaml is invalid."""
    path = model_path.with_name(SETTINGS_NAME)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return NOTHING
    except (OSError, UnicodeDecodeError) as error:
        raise DefaultsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_defaults(text, path)


def parse_defaults(text: str, path: Path) -> ModelDefaults:
    """The defaults in the text of a model.yaml. Raises DefaultsError, which names `path`, if it is invalid."""
    import yaml  # imported late: most models have no such file

    from api.models import strict_yaml

    try:
        content = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DefaultsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return NOTHING
    if not isinstance(content, dict):
        raise DefaultsError(f"{path} must consist of keys and values")
    served = {}
    for key, value in content.items():
        if key in NEUTRAL:
            if value is not None and not any(type(value) is type(ok) and value == ok for ok in NEUTRAL[key]):
                raise DefaultsError(f"{path}: {key} is not supported with this value")
        elif key not in IGNORED:
            served[key] = value
    unknown = next((key for key in served if key not in ModelDefaults.model_fields), None)
    if unknown is not None:
        raise DefaultsError(f"{path}: the key {unknown!r} is unknown")
    try:
        return ModelDefaults.model_validate(served)
    except ValidationError as error:
        details: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = details["loc"][0] if details["loc"] else ""
        reason = details["msg"].removeprefix("Value error, ")
        raise DefaultsError(f"{path}: {key}: {reason}" if key else f"{path}: {reason}") from None


def jinja(template: str) -> str:
    """Convert a template of cortex.cpp to an equivalent Jinja template.

    A conversation starts with the template's text; a missing system message is rendered as an empty one. The text
    before {prompt} also precedes each later question. The text after {prompt} precedes each answer.
    """
    before, answer = template.split(_PROMPT, 1)
    has_system = _SYSTEM in before
    system, question = before.split(_SYSTEM, 1) if has_system else ("", before)
    texts = ", ".join(json.dumps(text, ensure_ascii=False) for text in (system, question, answer))
    return f"{{% set system, question, answer = {texts} %}}{_OPENING if has_system else _WITHOUT_SYSTEM}{_TURNS}"
