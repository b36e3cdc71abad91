import time
from collections.abc import Iterator
from sqlite3 import Connection

import pytest

from api.tenants import store
from api.tenants.database import database
from api.tenants.errors import TenantsError
from api.tenants.keys import hash_of
from api.tenants.store import Change
from api.tenants.tenant import Limits, Priority, Tenant

FULL = Change(
    weight=2.5,
    priority=Priority.BATCH,
    models=("a", "b"),
    is_admin=True,
    limits={"waiting": 1, "concurrent": 2, "requests_per_minute": 3, "tokens_per_minute": 4},
    expiry=(4e9,),
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    with database() as connection:
        yield connection


def test_a_tenant_has_the_defaults_where_nothing_is_given(connection: Connection) -> None:
    store.add(connection, "alice", Change())
    [stored] = store.every(connection)
    assert stored.tenant == Tenant("alice")
    assert (stored.expires_at, stored.state(0)) == (None, "active")


def test_every_value_is_stored(connection: Connection) -> None:
    store.add(connection, "alice", FULL)
    [stored] = store.every(connection)
    assert stored.tenant == Tenant("alice", 2.5, Priority.BATCH, Limits(1, 2, 3, 4), ("a", "b"), is_admin=True)
    assert (stored.expires_at, stored.state(4e9)) == (4e9, "expired")


def test_a_key_is_stored_as_a_hash_only(connection: Connection) -> None:
    key = store.add(connection, "alice", Change())
    [stored] = store.every(connection)
    assert [each.hash for each in stored.keys] == [hash_of(key)]
    dump = "\n".join(connection.iterdump())
    assert key not in dump
    assert key[-10:] not in dump


def test_an_edit_changes_only_what_is_given(connection: Connection) -> None:
    store.add(connection, "alice", FULL)
    store.edit(connection, "alice", Change(weight=1.0, limits={"waiting": None}))
    store.edit(connection, "alice", Change(expiry=(None,)))
    [stored] = store.every(connection)
    assert stored.tenant == Tenant("alice", 1.0, Priority.BATCH, Limits(None, 2, 3, 4), ("a", "b"), is_admin=True)
    assert stored.expires_at is None


def test_the_older_keys_of_a_rotated_tenant_end_at_once_or_later(connection: Connection) -> None:
    store.add(connection, "alice", Change())
    store.rotate(connection, "alice")
    newest = store.rotate(connection, "alice", keep_seconds=3600.0)
    [stored] = store.every(connection)
    first, second, third = stored.keys
    assert first.revoked_at is not None
    assert second.revoked_at is None
    assert second.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert (third.hash, third.revoked_at, third.expires_at) == (hash_of(newest), None, None)


def test_a_revoked_tenant_gets_a_new_key_by_a_rotation(connection: Connection) -> None:
    store.add(connection, "alice", Change())
    store.revoke(connection, "alice")
    assert [each.state(0) for each in store.every(connection)] == ["revoked"]
    store.rotate(connection, "alice")
    assert [each.state(0) for each in store.every(connection)] == ["active"]


def test_names_are_unique_and_must_exist(connection: Connection) -> None:
    store.add(connection, "alice", Change())
    with pytest.raises(TenantsError, match="alice exists already"):
        store.add(connection, "alice", Change())
    for change in (
        lambda: store.edit(connection, "bob", Change(weight=1.0)),
        lambda: store.rotate(connection, "bob"),
        lambda: store.revoke(connection, "bob"),
    ):
        with pytest.raises(TenantsError, match="there is no 'bob'"):
            change()
