"""Who shares prefixes with whom: each salt of the KV cache comes from here."""

from api.flags import CacheScope


def resolved(scope: CacheScope | None, *, demands_keys: bool) -> CacheScope:
    """The scope of a server that was started with this flag; None if the flag is not set.

    With keys, tenants may not know each other. So they share nothing unless the flag says it.
    """
    if scope is not None:
        return scope
    return "tenant" if demands_keys else "server"


def salt_of(scope: CacheScope, tenant: str, salt: str) -> str:
    """The salt of a request in the engine. Requests with the same result share prefixes.

    `salt`: the client's `cache_salt`, or empty. No two different pairs of tenant and salt have the same result in the
    scope `tenant`. No two results of different scopes are equal, unless both are empty: pages on the disk outlive a
    server, and the next one may have another scope.
    """
    if scope == "tenant":
        return f"tenant:{len(tenant)}:{tenant}:{salt}"
    return f"salt:{salt}" if salt else ""
