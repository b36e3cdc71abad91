"""Who may call which operation."""

from ipaddress import ip_address

from quart import request

from api.errors import ApiError
from api.http.operation import Scope
from api.protocols.fields import Wire
from api.tenants.tenant import Tenant


def check(scope: Scope) -> None:
    """Check that the current request may call an operation of this scope.

    Only local callers that are neither browsers nor proxied may change the server. A web page could otherwise do it
    through the browser of a local user. All clients of a local proxy look local.

    Raises ApiError 403 if the caller may not, 415 if the body is not JSON.
    """
    if scope is not Scope.OWNER:
        return
    if request.mimetype != "application/json":  # a web page of another origin cannot send it without a preflight
        raise ApiError(415, "The request body must be application/json.", code="unsupported_media_type")
    if not is_local() or any(name in request.headers for name in ("Origin", "Forwarded", "X-Forwarded-For")):
        raise ApiError(403, "Models can only be started and stopped from the server's own machine.", code="forbidden")


def tenant(parsed: Wire | None) -> Tenant:
    """The tenant of the current request: the user that it names, else its address."""
    user = parsed.end_user if parsed is not None else None
    return Tenant(f"user:{user}" if user else f"address:{request.remote_addr}")


def is_local() -> bool:
    """Whether the client is on this machine."""
    own = request.scope.get("server")
    return is_same_machine(request.remote_addr, own[0] if own else None)


def is_same_machine(peer: str | None, own: str | None) -> bool:
    """Whether a peer is on this machine. `own`: the address of this machine that the peer connected to."""
    try:
        address = ip_address((peer or "").split("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback or peer == own
