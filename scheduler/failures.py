"""Failures of single requests. An exception on behalf of one request ends this request, never others or the engine."""

import logging
import math
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

_log = logging.getLogger("cortex.engine")

MAX_REASON: Final = 300
"""Characters of an unexpected exception's message that a client gets."""

P = ParamSpec("P")
T = TypeVar("T")


class RequestError(Exception):
    """One request cannot continue. The message is one line for the client."""

    finish_reason = "error"


class GrammarError(RequestError):
    """The grammar cannot be compiled, or an answer cannot match it any more."""

    finish_reason = "refused"


class InvalidLogitsError(RequestError):
    """The model computed values that are not numbers, so the sequence's KV cannot be trusted either."""


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """Call a function for one request. Returns its result, or the request's error if it raises any exception."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        return failure_of(error)


def failure_of(error: BaseException) -> RequestError:
    """Returns the request's error for an exception that its own work has raised.

    Logs an unexpected exception with its traceback. llguidance's panics are no subclasses of Exception. Raises
    exceptions that must end the process.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    _log.error("a request failed", exc_info=error)
    return RequestError(f"the model failed on this request: {describe(error)}")


def describe(error: BaseException) -> str:
    """Returns the kind and the message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")[:MAX_REASON]


def check_best(logit: float) -> None:
    """Raises InvalidLogitsError if the best logit of a row shows that the row is not valid.

    numpy's `max` and `argmax` return a NaN if there is one. A model may exclude tokens by -inf, but not all.
    """
    if not math.isfinite(logit):
        found = "NaN" if math.isnan(logit) else "infinity" if logit > 0 else "-infinity for every token"
        raise InvalidLogitsError(f"the model computed no valid logits ({found}) for this request")
