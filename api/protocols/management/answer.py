"""POST /v1/models/start and /v1/models/stop: models come and go while the server runs."""

from ipaddress import ip_address

import trio

from api.errors import ApiError
from api.flags import ModelOptions
from api.models.files import ModelFilesError, resolve
from api.protocols.management.request import StartRequest, StopRequest
from api.serving.fleet import Fleet, StartError
from api.serving.model import Slot


async def start(fleet: Fleet, request: StartRequest) -> Slot:
    """Returns once the model answers. Raises ApiError 404 for one that is not on disk, 409 for one that cannot load."""
    try:
        options = await trio.to_thread.run_sync(_options, request)
    except ModelFilesError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error
    try:
        return await fleet.start(options)
    except StartError as error:
        raise ApiError(409, str(error), param="model", code="model_not_loaded") from error


def _options(request: StartRequest) -> ModelOptions:
    return request.flags().model_options(request.model, resolve(request.path or request.model))


async def stop(fleet: Fleet, request: StopRequest) -> Slot:
    """Returns once its memory is given back. Raises ApiError 404 for a model that is not served."""
    slot = fleet.slot(request.model)
    await fleet.stop(request.model)
    return slot


def is_same_machine(peer: str | None, own: str | None) -> bool:
    """Whether a peer's address is of this machine, which it reached by its `own`."""
    try:
        address = ip_address((peer or "").split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback or peer == own
