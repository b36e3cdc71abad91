"""Starting and stopping models: a model's name, and the flags that are about one model."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, create_model

from api.flags import MAX_NAME_LENGTH, MODEL_ROWS, ModelFlags, Row
from api.protocols.fields import Strict

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]


class ModelStart(Strict):
    """Null is the default, as without the flag."""

    model: Name
    path: Annotated[str, Field(min_length=1)] | None = None
    """The file, where the name alone does not say which."""

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
    """Whole numbers as integers, as the schema shows them."""
    return int(number) if number is not None and float(number).is_integer() else number


def _fields() -> dict[str, Any]:
    return {name: (_type(row) | None, None) for name, row in MODEL_ROWS.items()}


StartRequest: Final[type[ModelStart]] = create_model(
    "StartRequest", __base__=ModelStart, __doc__=ModelStart.__doc__, **_fields()
)
"""The request with a field for each flag about a model, from the table of flags."""


class StopRequest(Strict):
    model: Name
