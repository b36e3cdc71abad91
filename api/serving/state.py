"""The states of a model, and the transitions between them."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, Literal, get_args

Status = Literal["loading", "ready", "stopping", "unloaded", "failed"]
"""The states that clients see."""
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
UnreadyReason = Literal["loading", "stopping", "failed", "draining", "no_model", "queue_full"]
"""Why a request would not be answered now."""


class State(Enum):
    """The state of a model. It has a service in READY, UNLOADING and DRAINING only."""

    UNLOADED = auto()
    """It has no engine. The next request or start loads it."""
    LOADING = auto()
    """Its engine is starting. Requests wait if a request caused the load; else they are refused with 503."""
    READY = auto()
    """It serves requests. Its engine may be restarting."""
    UNLOADING = auto()
    """Its engine is ending because the model is idle. Requests wait, and then load it again."""
    DRAINING = auto()
    """It was stopped. Running answers may finish; new requests are refused with 503."""
    ABORTING = auto()
    """It was stopped while it loaded. Its engine is ending."""
    STOPPED = auto()
    """It was stopped, and its engine has ended. Final."""
    FAILED = auto()
    """It could not be loaded and was never ready. Final."""

    @property
    def is_final(self) -> bool:
        """Whether no other state follows."""
        return not TRANSITIONS[self]

    @property
    def status(self) -> Status:
        return _STATUSES[self]


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.UNLOADED: frozenset({State.LOADING, State.STOPPED}),
    State.LOADING: frozenset({State.READY, State.UNLOADED, State.ABORTING, State.FAILED}),
    State.READY: frozenset({State.UNLOADING, State.DRAINING, State.UNLOADED}),
    State.UNLOADING: frozenset({State.UNLOADED, State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
    State.ABORTING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
}
"""LOADING becomes UNLOADED if a model that was ready before cannot be loaded again, or if the server ends.
READY becomes UNLOADED if the engine ends although the model was neither unloaded nor stopped."""

_STATUSES: Final[Mapping[State, Status]] = {
    State.UNLOADED: "unloaded",
    State.LOADING: "loading",
    State.READY: "ready",
    State.UNLOADING: "stopping",
    State.DRAINING: "stopping",
    State.ABORTING: "stopping",
    State.STOPPED: "unloaded",
    State.FAILED: "failed",
}
