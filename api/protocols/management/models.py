"""GET /v1/models: lists the models of the server."""

from typing import Any

from api.protocols.call import Call
from api.serving.model import ModelRuntime


async def list_models(call: Call[None]) -> dict[str, Any]:
    models = call.server.fleet.models
    return {"object": "list", "data": [described(model, name) for model in models for name in model.names]}


async def get_model(call: Call[None]) -> dict[str, Any]:
    """One model. Raises ApiError 404 if there is no such model."""
    name = call.path["name"]
    return described(call.server.fleet.model(name), name)


def described(model: ModelRuntime, name: str) -> dict[str, Any]:
    """A model in wire form, under one of its names."""
    length = model.context_length
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "cortex",
        "status": model.status,
        "context_length": length,
        "max_model_len": length,
        "chat_template": model.template_origin,
        "answer_syntax": model.template_line,
    }
