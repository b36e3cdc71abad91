"""Who sent a request, and which operations that one may call.

The peer's address and the `Host` header prove nothing: behind a reverse proxy on this machine, every client looks
local.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, assert_never

from quart import request

from api.errors import ApiError
from api.http.operation import Scope
from api.protocols.fields import Wire
from api.tenants.directory import Directory, Refusal
from api.tenants.keys import hash_of, matches
from api.tenants.tenant import OWNER, Tenant

MAX_USER_LENGTH: Final = 128
"""Characters of a user that are part of a tenant's name. Longer ones are hashed."""
REFUSALS: Final = {
    None: "This server needs an API key. Send one in the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
    Refusal.UNKNOWN: "Incorrect API key provided. The server does not know this key.",
    Refusal.EXPIRED: "This API key has expired. Ask the server's administrator for a new one.",
    Refusal.REVOKED: "This API key has been revoked. Ask the server's administrator for a new one.",
}
"""Messages about a key that is not accepted; with None, about a missing one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as its key shows."""

    tenant: Tenant | None
    """The tenant of the key; None without an accepted one."""
    refusal: Refusal | None = None
    """Why the key is not accepted; None without a key."""

    @property
    def is_owner(self) -> bool:
        """Whether it may manage the server."""
        return self.tenant is not None and self.tenant.is_admin


class Access:
    """Recognizes callers and checks what they may call."""

    def __init__(
        self,
        directory: Directory | None = None,
        secret: str | None = None,
        *,
        demands_keys: bool = False,
        public_metrics: bool = False,
    ) -> None:
        """`secret`: the owner's. `public_metrics`: whether metrics need no key even if other operations do."""
        self.demands_keys = demands_keys
        self._directory = directory
        self._secret = None if secret is None else hash_of(secret)
        self._public_metrics = public_metrics

    async def admit(self, scope: Scope) -> Caller:
        """Who sent the current request, who may call an operation of this scope.

        Raises ApiError 401 without an accepted key where one is needed, 403 if its tenant may not do it, 415 if the
        body of a request that manages the server is not JSON.
        """
        needs_key = self._needs_key(scope)
        caller = await self._caller(needs_key=needs_key)
        if scope is Scope.OWNER:
            self._check_owner(caller)
        elif needs_key and caller.tenant is None:
            raise _unauthorized(caller.refusal)
        return caller

    def _needs_key(self, scope: Scope) -> bool:
        match scope:
            case Scope.PUBLIC:
                return False
            case Scope.METRICS:
                return self.demands_keys and not self._public_metrics
            case Scope.USER:
                return self.demands_keys
            case Scope.OWNER:
                return True
            case _:
                assert_never(scope)

    async def _caller(self, *, needs_key: bool) -> Caller:
        """Who sent the current request. Does not wait for keys that nobody needs: many clients send any text."""
        key = _sent_key()
        if key is None:
            return Caller(None)
        if self._secret is not None and matches(self._secret, hash_of(key)):
            return Caller(OWNER)
        if self._directory is None:
            return Caller(None, Refusal.UNKNOWN)
        found = await self._directory.recognize(key) if needs_key else self._directory.find(key)
        return Caller(found) if isinstance(found, Tenant) else Caller(None, found)

    def _check_owner(self, caller: Caller) -> None:
        """Web pages are refused, even those that know a key: nobody manages a server from one."""
        if request.mimetype != "application/json":  # a web page of another origin cannot send it without a preflight
            raise ApiError(415, "The request body must be application/json.", code="unsupported_media_type")
        if "Origin" in request.headers:
            raise ApiError(403, "Models cannot be started or stopped from web pages.", code="forbidden")
        if caller.is_owner:
            return
        is_known = caller.refusal in (Refusal.EXPIRED, Refusal.REVOKED)
        if is_known or (self.demands_keys and caller.refusal is not None):
            raise _unauthorized(caller.refusal)
        message = (
            "Starting and stopping models needs the key of an administrator ('cortex keys add NAME --admin'). "
            "On the server's machine, the 'cortex' command needs none."
        )
        raise ApiError(403, message, code="forbidden")

    def tenant(self, caller: Caller, parsed: Wire | None) -> Tenant:
        """The tenant of the current request: that of its key if keys are demanded, else its user or its address."""
        if self.demands_keys and caller.tenant is not None:
            return caller.tenant
        user = parsed.end_user if parsed is not None else None
        return Tenant(f"user:{_bounded(user)}" if user else f"address:{request.remote_addr}")

    def tenant_of(self, keeper: str, name: str) -> Tenant | None:
        """The tenant for whom a batch runs, that belongs to `keeper` (see Call.keeper).

        None while nobody could read its answers: the tenant has no valid key, or the server demands keys now and did
        not before, or the reverse.
        """
        if not self.demands_keys:
            return Tenant(name) if not keeper else None
        if not keeper or keeper == OWNER.name:
            return OWNER if keeper else None
        return self._directory.named(keeper) if self._directory is not None else None


def _sent_key() -> str | None:
    """The key that the current request has: as OpenAI's SDK sends it, else as Anthropic's does."""
    kind, _, credentials = request.headers.get("Authorization", "").strip().partition(" ")
    bearer = credentials.strip() if kind.lower() == "bearer" else ""
    return bearer or request.headers.get("x-api-key", "").strip() or None


def _unauthorized(refusal: Refusal | None) -> ApiError:
    return ApiError(401, REFUSALS[refusal], code="invalid_api_key")


def _bounded(user: str) -> str:
    """A user's name for the name of a tenant, which is kept in memory and written to logs."""
    if len(user) <= MAX_USER_LENGTH and user.isprintable():
        return user
    return hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()
