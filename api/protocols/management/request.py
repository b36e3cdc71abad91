"""The wire types of requests that start and stop models. A start has a field for each flag of a model."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, create_model

from api.flags import MAX_NAME_LENGTH, MODEL_ROWS, ModelFlags, Row
from api.protocols.fields import Query, Strict

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]


class ModelStart(Strict):
    """A request to start a model. Null means the default, as without the flag."""

    model: Name
    path: Annotated[str, Field(min_length=1)] | None = None
    """The model's file, if the name is not enough to find it."""

    def flags(self) -> ModelFlags:
        """The flags that the request sets."""
        return ModelFlags(**self.model_dump(exclude={"model", "path"}, exclude_none=True))


def _type(row: Row) -> Any:
    flag = row.flag
    if flag.choices:
        return Literal[flag.choices]
    if row.type is list:
        return list[Annotated[str, Field(min_length=1, max_length=flag.max_length)]]
    if row.type is str:
        return Annotated[str, AfterValidator(row.checked)]
    return Annotated[row.type, Field(ge=_bound(flag.min), le=_bound(flag.max))]


def _bound(number: float | None) -> float | None:
    """The bound, as an integer if it is whole, for the JSON schema."""
    return int(number) if number is not None and float(number).is_integer() else number


def _fields() -> dict[str, Any]:
    return {name: (_type(row) | None, None) for name, row in MODEL_ROWS.items()}


StartRequest: Final[type[ModelStart]] = create_model(
    "StartRequest", __base__=ModelStart, __doc__=ModelStart.__doc__, **_fields()
)
"""ModelStart with a field for each flag of a model, from the table of flags."""


class StopRequest(Strict):
    model: Name


class LoadsQuery(Query):
    include: str | None = None
    """Which numbers a router wants. The answer has all numbers in any case."""
