"""POST /v1/models/start and /v1/models/stop: starts and stops models while the server runs."""

from collections.abc import Mapping
from typing import Any

import trio

from api.errors import ApiError
from api.flags import ModelOptions
from api.models.files import ModelFilesError, resolve
from api.protocols.call import Call
from api.protocols.management.models import described
from api.protocols.management.request import ModelStart, StopRequest
from api.serving.fleet import StartError


async def start(call: Call[ModelStart]) -> dict[str, Any]:
    """Start a model. Returns once it is ready. Flags that the request does not set are those of the server.

    Raises ApiError 404 if the model is not on disk, 409 if it cannot be loaded or its name is in use.
    """
    try:
        options = await trio.to_thread.run_sync(_options, call.request, call.server.model_flags)
    except ModelFilesError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error
    try:
        model = await call.server.fleet.start(options)
    except StartError as error:
        raise ApiError(409, str(error), param="model", code="model_not_loaded") from error
    return described(model, model.names[0])


def _options(request: ModelStart, inherited: Mapping[str, object]) -> ModelOptions:
    return request.flags().model_options(request.model, resolve(request.path or request.model), inherited)


async def stop(call: Call[StopRequest]) -> dict[str, Any]:
    """Stop a model. Returns once its memory is free. Raises ApiError 404 if there is no such model."""
    fleet, name = call.server.fleet, call.request.model
    model = fleet.model(name)
    await fleet.stop(name)
    return described(model, model.names[0])
