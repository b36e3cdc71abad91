"""Who may call which operation."""

from ipaddress import ip_address

from quart import request

from api.errors import ApiError
from api.http.operation import Scope


def check(scope: Scope) -> None:
    """Let only the server's own machine change the server: no web page that somebody there looks at, and nobody who
    comes through a proxy, which is on this machine for all its clients.

    Raises ApiError 403, 415.
    """
    if scope is not Scope.OWNER:
        return
    if request.mimetype != "application/json":  # which a page of another origin cannot send unasked
        raise ApiError(415, "The request body must be application/json.", code="unsupported_media_type")
    if not is_local() or any(name in request.headers for name in ("Origin", "Forwarded", "X-Forwarded-For")):
        raise ApiError(403, "Models are started and stopped from the server's own machine only.", code="forbidden")


def is_local() -> bool:
    """Whether the client is on this machine."""
    own = request.scope.get("server")
    return is_same_machine(request.remote_addr, own[0] if own else None)


def is_same_machine(peer: str | None, own: str | None) -> bool:
    """Whether a peer's address is of this machine, which it reached by its `own`."""
    try:
        address = ip_address((peer or "").split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback or peer == own
