"""A tenant: one user of the server, to whom shares, limits, kept responses and usage belong."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final


class Priority(IntEnum):
    """The classes of requests. A lower number goes first."""

    INTERACTIVE = 0
    DEFAULT = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a tenant may have or use. None for the server's default, 0 for no limit."""

    waiting: int | None = None
    """Sequences and embedding requests that wait for their first result."""
    concurrent: int | None = None
    """Sequences and embedding requests that have not ended."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt tokens and answer tokens together."""


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    """Unique among all tenants of a server."""
    weight: float = 1.0
    """Its share compared with the shares of other tenants of the same class; more than 0."""
    priority: Priority = Priority.DEFAULT
    """The highest class of its requests."""
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] = ()
    """The names of the models that it may use; empty for all."""
    is_admin: bool = False
    """Whether it may manage the server."""

    def class_of(self, wished: Priority | None) -> Priority:
        """The class of a request that asks for `wished`; None for no wish. It is never higher than the tenant's."""
        return self.priority if wished is None else max(self.priority, wished)


LOCAL: Final = Tenant("local")
"""The tenant of requests that come from no client, such as those of tests."""
OWNER: Final = Tenant("owner", is_admin=True)
"""The server's owner, who can read the secret in its folder."""
KEYLESS: Final = "keyless"
"""The name under which metrics count all tenants without keys. Clients choose their names."""
OTHERS: Final = "others"
"""The name under which tenants without keys are counted if there are too many of them."""


def is_keyless(name: str) -> bool:
    """Whether this is the name of a tenant without a key: `user:...` or `address:...`. Names of keys have no colon."""
    return ":" in name
