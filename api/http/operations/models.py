"""Operations that list, start and stop models."""

from typing import Final

from api.http.operation import Operation, Parameter, Scope
from api.protocols.management import answer as management
from api.protocols.management import models
from api.protocols.management.request import StartRequest, StopRequest
from api.protocols.management.types import Model, ModelList

MODEL_NAME: Final = {"name": Parameter("The model's name.", has_slashes=True)}

MODELS: Final = (
    Operation(
        "list_models",
        "GET",
        "/v1/models",
        "The models that are being served",
        models.list_models,
        ModelList,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "get_model",
        "GET",
        "/v1/models/{name}",
        "A model by its name",
        models.get_model,
        Model,
        errors=(404,),
        parameters=MODEL_NAME,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "start_model",
        "POST",
        "/v1/models/start",
        "Start serving one more model",
        management.start,
        Model,
        StartRequest,
        errors=(400, 403, 404, 409, 413, 415),
        scope=Scope.OWNER,
    ),
    Operation(
        "stop_model",
        "POST",
        "/v1/models/stop",
        "Stop serving a model",
        management.stop,
        Model,
        StopRequest,
        errors=(400, 403, 404, 413, 415),
        scope=Scope.OWNER,
    ),
)
