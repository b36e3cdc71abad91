"""The ranges of sampling parameters, in requests and in model.yaml."""

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

MAX_STOPS: Final = 16

Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepeatPenalty = Annotated[float, Field(ge=0.01, le=10)]
Window = Annotated[int, Field(ge=-1, le=1 << 20)]


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[Stop], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)]
