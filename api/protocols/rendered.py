"""What a request would generate from, in the form of vLLM's render endpoints, which routers ask before they route."""

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from api.protocols.fields import GenerationRequest
from api.protocols.types import Answer, AnyAnswer
from api.serving.service import ModelService
from api.serving.spec import GenerationSpec
from api.tenants.tenant import Priority
from scheduler.messages import Submit


class RenderedSampling(Answer):
    """Sampling parameters with vLLM's names, of the request or else of the model."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    """0 keeps the whole vocabulary."""
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int | None
    """Null unless the request sets it."""
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    max_tokens: int
    """At most as many as the context has room for."""
    min_tokens: int
    logprobs: int | None
    logit_bias: dict[str, float] | None


class RenderedRequest(Answer):
    """One prompt of a request as tokens, with vLLM's names."""

    request_id: str
    token_ids: list[int]
    features: None
    """Null: there are only texts."""
    sampling_params: RenderedSampling
    model: str
    stream: bool
    stream_options: dict[str, Any] | None
    cache_salt: str | None
    priority: Literal[-1, 0, 1]
    """The class that the request asks for: -1 is `interactive`, 0 is `default` or none, 1 is `batch`."""
    kv_transfer_params: None
    """Null: an engine is one process."""


class RenderedRequests(AnyAnswer[list[RenderedRequest]]):
    """One for each prompt."""


async def rendered(
    service: ModelService, request: GenerationRequest, spec: GenerationSpec, kind: str
) -> list[dict[str, Any]]:
    """The prompts of a request as RenderedRequests. `kind`: the first part of their ids.

    Raises ApiError as the generation would.
    """
    stops = service.defaults.stop if spec.stop is None else spec.stop
    priority = Priority.DEFAULT if spec.priority is None else spec.priority
    options = request.stream_options if request.stream else None
    return [
        {
            "request_id": f"{kind}-{uuid.uuid4().hex}",
            "token_ids": submit.tokens,
            "features": None,
            "sampling_params": _sampling(submit, spec, stops or ()),
            "model": request.model,
            "stream": bool(request.stream),
            "stream_options": None if options is None else options.model_dump(exclude_none=True),
            "cache_salt": request.cache_salt,
            "priority": priority - Priority.DEFAULT,
            "kv_transfer_params": None,
        }
        for submit in await service.render(spec)
    ]


def _sampling(submit: Submit, spec: GenerationSpec, stops: Sequence[str]) -> dict[str, Any]:
    params = submit.params
    return {
        "n": spec.num_choices,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repeat_penalty,
        "seed": spec.sampling.get("seed"),
        "stop": list(stops),
        "stop_token_ids": list(spec.stop_tokens),
        "ignore_eos": params.ignore_eos,
        "max_tokens": submit.max_tokens,
        "min_tokens": params.min_tokens,
        "logprobs": submit.logprobs,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias} or None,
    }
