"""A model's own defaults, from the model.yaml beside it, with the keys of cortex.cpp."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.models.files import SETTINGS_NAME, ModelFilesError
from api.ranges import Penalty, RepeatPenalty, Share, Stops, Window

SILENT: Final = frozenset(
    {
        *("name", "model", "version", "id", "object", "owned_by", "created", "engine", "files", "size", "author"),
        *("os", "gpu_arch", "quantization_method", "precision", "tp", "trtllm_version", "text_model", "metadata"),
        *("stream", "n_parallel", "n_parallels", "n_probs", "dynatemp_exponent"),
        *("system_template", "user_template", "ai_template"),
    }
)
"""Keys that say nothing to this server: what the model is called, and what concerns other engines."""
NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "dynatemp_range": (0, 0.0),
    "tfs_z": (1, 1.0),
    "penalize_nl": (False,),
    "min_keep": (0, 1),
    "grammar": ("",),
}
"""Keys that are not served, and the values besides null that ask for nothing."""

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
    """A model.yaml that cannot be used: its path, the key and what is wrong with it."""


def _template_of_cortex(template: str) -> str:
    if template and _PROMPT not in template:
        raise ValueError(f"must contain {_PROMPT}")
    return template


class ModelDefaults(BaseModel):
    """What a model.yaml says; None is nothing."""

    model_config = ConfigDict(strict=True, extra="forbid")

    stop: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
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
    """-1 is a random one."""
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    """-1 and 0 are no bound."""
    ctx_len: Annotated[int, Field(ge=0)] | None = None
    """0 is the built-in default."""
    ngl: Annotated[int, Field(ge=-1)] | None = None
    """Layers on the GPU; -1 is all."""
    prompt_template: Annotated[str, AfterValidator(_template_of_cortex)] | None = None
    """cortex.cpp's: a conversation's beginning with {system_message} and {prompt} in it."""
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
        """The chat template that stands in for the file's."""
        return jinja(self.prompt_template) if self.prompt_template else self.chat_template or None

    @property
    def token_limit(self) -> int | None:
        """How many tokens an answer may have at most where the request does not say."""
        return self.max_tokens if self.max_tokens and self.max_tokens > 0 else None

    def sampling(self) -> dict[str, Any]:
        """Fields of the engine's SamplingParams, those that it says something about."""
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
"""Of a model without a model.yaml."""


def read_defaults(model_path: Path) -> ModelDefaults:
    """Of the model that this file begins. Raises DefaultsError."""
    path = model_path.with_name(SETTINGS_NAME)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return NOTHING
    except (OSError, UnicodeDecodeError) as error:
        raise DefaultsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_defaults(text, path)


def parse_defaults(text: str, path: Path) -> ModelDefaults:
    """Raises DefaultsError, about a file of this path."""
    import yaml  # only now: most models have no such file

    from api.models import strict_yaml

    try:
        said = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DefaultsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if said is None:
        return NOTHING
    if not isinstance(said, dict):
        raise DefaultsError(f"{path} must consist of keys and values")
    served = {}
    for key, value in said.items():
        if key in NEUTRAL:
            if value is not None and not any(type(value) is type(ok) and value == ok for ok in NEUTRAL[key]):
                raise DefaultsError(f"{path}: {key} is not served with this value")
        elif key not in SILENT:
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
    """The Jinja template that is equivalent to one of cortex.cpp's.

    A conversation begins with the template's text, an empty system message standing in for a missing one. What stands
    before {prompt} then comes before each later question, and what stands behind it before each answer.
    """
    before, answer = template.split(_PROMPT, 1)
    has_system = _SYSTEM in before
    system, question = before.split(_SYSTEM, 1) if has_system else ("", before)
    texts = ", ".join(json.dumps(text, ensure_ascii=False) for text in (system, question, answer))
    return f"{{% set system, question, answer = {texts} %}}{_OPENING if has_system else _WITHOUT_SYSTEM}{_TURNS}"
