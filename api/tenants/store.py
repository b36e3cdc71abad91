"""Tenants and the hashes of their keys, in the database."""

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from api.sqlite import snapshot, transaction
from api.tenants.errors import TenantsError
from api.tenants.keys import hash_of, new_key
from api.tenants.tenant import Limits, Priority, Tenant
from api.tenants.values import checked_name, checked_weight

ENDING: Final = 4
"""Characters of a key that are stored, so that its user recognizes it."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is known about a key."""

    hash: bytes = field(repr=False)
    ending: str
    created_at: float
    """Seconds since the epoch, as all times here."""
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredTenant:
    tenant: Tenant
    created_at: float
    expires_at: float | None
    """When all its keys expire."""
    keys: tuple[StoredKey, ...]
    """Oldest first."""

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if all(key.revoked_at is not None for key in self.keys):
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class Change:
    """New values for a tenant. None leaves a value as it is."""

    weight: float | None = None
    priority: Priority | None = None
    models: tuple[str, ...] | None = None
    is_admin: bool | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """By the names of the fields of Limits. None removes a limit."""
    expiry: tuple[float | None] | None = None
    """The new time; (None,) for never."""

    def of(self, tenant: Tenant) -> Tenant:
        """The changed tenant. Raises ValueError if a value is not valid."""
        return Tenant(
            tenant.name,
            tenant.weight if self.weight is None else checked_weight(self.weight),
            tenant.priority if self.priority is None else self.priority,
            replace(tenant.limits, **self.limits),
            tenant.models if self.models is None else self.models,
            tenant.is_admin if self.is_admin is None else self.is_admin,
        )


def add(connection: sqlite3.Connection, name: str, change: Change) -> str:
    """Add a tenant, with the defaults where `change` sets nothing. Returns its key, which is not stored.

    Raises TenantsError if the name is in use.
    """
    tenant, now = change.of(Tenant(checked_name(name))), time.time()
    expires_at = change.expiry[0] if change.expiry else None
    with transaction(connection):
        if _find(connection, name) is not None:
            raise TenantsError(
                f"{name} exists already; 'cortex keys edit {name}' changes it, and 'cortex keys rotate {name}' "
                "makes a new key for it"
            )
        values = _columns(tenant) | {"name": name, "created_at": now, "expires_at": expires_at}
        marks = ", ".join(f":{column}" for column in values)
        row = connection.execute(f"INSERT INTO tenants ({', '.join(values)}) VALUES ({marks})", values)  # noqa: S608
        return _add_key(connection, row.lastrowid, now)


def edit(connection: sqlite3.Connection, name: str, change: Change) -> None:
    """Raises TenantsError if there is no such tenant."""
    with transaction(connection):
        tenant_id, stored = _found(connection, name)
        values = _columns(change.of(stored.tenant))
        values["expires_at"] = change.expiry[0] if change.expiry else stored.expires_at
        changes = ", ".join(f"{column} = :{column}" for column in values)
        connection.execute(f"UPDATE tenants SET {changes} WHERE id = :id", values | {"id": tenant_id})  # noqa: S608


def rotate(connection: sqlite3.Connection, name: str, keep_seconds: float = 0.0) -> str:
    """Make a new key for a tenant. Its other keys end after this time. Returns the new key, which is not stored.

    Raises TenantsError if there is no such tenant.
    """
    now = time.time()
    with transaction(connection):
        tenant_id, _ = _found(connection, name)
        if keep_seconds:
            end = now + keep_seconds
            sql = "UPDATE keys SET expires_at = min(coalesce(expires_at, :end), :end) "
            connection.execute(f"{sql} WHERE tenant_id = :id AND revoked_at IS NULL", {"id": tenant_id, "end": end})
        else:
            _revoke_keys(connection, tenant_id, now)
        return _add_key(connection, tenant_id, now)


def revoke(connection: sqlite3.Connection, name: str) -> None:
    """End all keys of a tenant. Raises TenantsError if there is no such tenant."""
    with transaction(connection):
        tenant_id, _ = _found(connection, name)
        _revoke_keys(connection, tenant_id, time.time())


def every(connection: sqlite3.Connection) -> list[StoredTenant]:
    """All tenants by name, the revoked ones too. Raises TenantsError if one is damaged."""
    keys: dict[int, list[StoredKey]] = {}
    with snapshot(connection):
        tenants = _rows(connection, "SELECT * FROM tenants ORDER BY name")
        for row in _rows(connection, "SELECT * FROM keys ORDER BY id"):
            keys.setdefault(row["tenant_id"], []).append(_key(row))
    return [_read(row, keys.get(row["id"], [])) for row in tenants]


def _found(connection: sqlite3.Connection, name: str) -> tuple[int, StoredTenant]:
    row = _find(connection, name)
    if row is None:
        raise TenantsError(f"there is no {name!r}; 'cortex keys list' shows the names")
    return row["id"], _read(row, [])


def _find(connection: sqlite3.Connection, name: str) -> dict[str, Any] | None:
    return next(iter(_rows(connection, "SELECT * FROM tenants WHERE name = ?", name)), None)


def _rows(connection: sqlite3.Connection, sql: str, *values: object) -> list[dict[str, Any]]:
    found = connection.execute(sql, values)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


def _add_key(connection: sqlite3.Connection, tenant_id: int | None, now: float) -> str:
    key = new_key()
    connection.execute(
        "INSERT INTO keys (tenant_id, hash, ending, created_at) VALUES (?, ?, ?, ?)",
        (tenant_id, hash_of(key), key[-ENDING:], now),
    )
    return key


def _revoke_keys(connection: sqlite3.Connection, tenant_id: int, now: float) -> None:
    connection.execute("UPDATE keys SET revoked_at = ? WHERE tenant_id = ? AND revoked_at IS NULL", (now, tenant_id))


def _columns(tenant: Tenant) -> dict[str, Any]:
    limits = asdict(tenant.limits)
    return {
        "weight": tenant.weight,
        "priority": tenant.priority.name.lower(),
        "max_waiting": limits["waiting"],
        "max_concurrent": limits["concurrent"],
        "requests_per_minute": limits["requests_per_minute"],
        "tokens_per_minute": limits["tokens_per_minute"],
        "models": json.dumps(tenant.models),
        "is_admin": int(tenant.is_admin),
    }


def _read(row: dict[str, Any], keys: list[StoredKey]) -> StoredTenant:
    """Raises TenantsError if the row has a value that this program did not write."""
    try:
        return _stored(row, keys)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise TenantsError(f"the entry of {row['name']!r} in the database is damaged") from None


def _stored(row: dict[str, Any], keys: list[StoredKey]) -> StoredTenant:
    limits = Limits(row["max_waiting"], row["max_concurrent"], row["requests_per_minute"], row["tokens_per_minute"])
    tenant = Tenant(
        row["name"],
        checked_weight(row["weight"]),
        Priority[row["priority"].upper()],
        limits,
        tuple(json.loads(row["models"])),
        bool(row["is_admin"]),
    )
    return StoredTenant(tenant, row["created_at"], row["expires_at"], tuple(keys))


def _key(row: dict[str, Any]) -> StoredKey:
    return StoredKey(row["hash"], row["ending"], row["created_at"], row["expires_at"], row["revoked_at"])
