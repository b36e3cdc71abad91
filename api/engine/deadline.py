"""The time at which a request must have its whole answer."""

from dataclasses import dataclass
from math import inf
from typing import Final

from api.errors import ApiError


@dataclass(frozen=True, slots=True)
class Deadline:
    at: float = inf
    """On trio's clock."""
    seconds: float = inf
    """The time that the request had, from its arrival."""

    def error(self) -> ApiError:
        """The error of a request that has not ended by then. SDKs must not retry it: it would take as long again."""
        message = f"The request has not ended within {self.seconds:g} seconds, its time limit."
        return ApiError(504, message, kind="server_error", code="request_timeout", should_retry=False)


NEVER: Final = Deadline()
