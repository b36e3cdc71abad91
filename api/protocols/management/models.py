"""GET /v1/models: which models are served."""

from typing import Any

from api.protocols.call import Call
from api.serving.model import Slot


async def list_models(call: Call[None]) -> dict[str, Any]:
    slots = call.server.fleet.slots
    return {"object": "list", "data": [described(slot, name) for slot in slots for name in slot.names]}


async def get_model(call: Call[None]) -> dict[str, Any]:
    """Raises ApiError 404."""
    name = call.path["name"]
    return described(call.server.fleet.slot(name), name)


def described(slot: Slot, name: str) -> dict[str, Any]:
    """A model, by one of its names."""
    return {"id": name, "object": "model", "created": slot.created, "owned_by": "cortex", "status": slot.status}
