"""GET /v1/models: which models are served."""

from typing import Any

from api.protocols.call import Call
from api.serving.model import ModelRuntime


async def list_models(call: Call[None]) -> dict[str, Any]:
    models = call.server.fleet.models
    return {"object": "list", "data": [described(model, name) for model in models for name in model.names]}


async def get_model(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404."""
    name = call.path["name"]
    return described(call.server.fleet.model(name), name)


def described(model: ModelRuntime, name: str) -> dict[str, Any]:
    """A model, by one of its names."""
    return {"id": name, "object": "model", "created": model.created, "owned_by": "cortex", "status": model.status}
