import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from api.tenants import database, store
from api.tenants.directory import REFRESH_SECONDS, Directory, Refusal
from api.tenants.errors import TenantsError
from api.tenants.keys_file import entry_text
from api.tenants.store import Change
from api.tenants.tenant import Tenant

FILE_KEY = "the key in the keys file"


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(clock: Clock) -> Iterator[Directory]:
    directory = Directory(clock=clock)
    directory.load()
    yield directory
    directory.close()


def add(name: str, change: Change | None = None) -> str:
    with database.database() as connection:
        return store.add(connection, name, change or Change())


def tenant(directory: Directory, key: str) -> str | Refusal:
    found = directory.find(key)
    return found.name if isinstance(found, Tenant) else found


def test_nobody_has_a_key_at_first_and_no_file_is_made(directory: Directory, home: Path) -> None:
    assert directory.is_empty
    directory.refresh()
    assert directory.find("anything") is Refusal.UNKNOWN
    assert not home.exists()


def test_changes_of_other_connections_take_effect(directory: Directory) -> None:
    key = add("alice")
    assert tenant(directory, key) is Refusal.UNKNOWN
    directory.refresh()
    assert directory.find(key) == Tenant("alice")
    with database.database() as connection:
        store.edit(connection, "alice", Change(weight=5.0))
        directory.refresh()
        assert directory.find(key) == Tenant("alice", 5.0)
        newer = store.rotate(connection, "alice")
        directory.refresh()
        assert (tenant(directory, key), tenant(directory, newer)) == (Refusal.REVOKED, "alice")
        store.revoke(connection, "alice")
        directory.refresh()
        assert tenant(directory, newer) is Refusal.REVOKED


def test_a_database_is_read_only_when_it_has_changed(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    add("alice")
    directory.refresh()

    def fail(connection: object) -> None:
        raise AssertionError("it has not changed")

    monkeypatch.setattr(store, "every", fail)
    directory.refresh()


def test_a_database_that_is_deleted_and_made_again_is_read_again(directory: Directory, home: Path) -> None:
    first = add("alice")
    directory.refresh()
    for file in home.glob("cortex.db*"):
        file.unlink()
    directory.refresh()
    assert tenant(directory, first) is Refusal.UNKNOWN
    second = add("alice")
    directory.refresh()
    assert tenant(directory, second) == "alice"


def test_tenants_and_keys_expire(directory: Directory, clock: Clock) -> None:
    key = add("alice", Change(expiry=(clock.now + 10,)))
    directory.refresh()
    assert tenant(directory, key) == "alice"
    clock.now += 10
    assert tenant(directory, key) is Refusal.EXPIRED


def test_the_keys_before_a_rotation_expire(directory: Directory, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(time, "time", clock)
    key = add("alice")
    with database.database() as connection:
        newer = store.rotate(connection, "alice", keep_seconds=60.0)
    directory.refresh()
    assert (tenant(directory, key), tenant(directory, newer)) == ("alice", "alice")
    clock.now += 60
    assert (tenant(directory, key), tenant(directory, newer)) == (Refusal.EXPIRED, "alice")


async def test_changes_are_read_within_a_second(autojump_clock: MockClock) -> None:
    directory = Directory()
    directory.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(directory.run)
        key = await trio.to_thread.run_sync(add, "alice")
        while tenant(directory, key) is Refusal.UNKNOWN:
            assert trio.current_time() < 1e6
            await trio.sleep(REFRESH_SECONDS)
        nursery.cancel_scope.cancel()


def test_a_broken_database_keeps_the_keys_and_is_logged_once(
    directory: Directory, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = add("alice")
    directory.refresh()
    for file in home.glob("cortex.db-*"):
        file.unlink()
    (home / "broken").write_bytes(b"not a database" * 100)
    (home / "broken").replace(home / "cortex.db")
    with caplog.at_level(logging.ERROR):
        directory.refresh()
        directory.refresh()
    assert tenant(directory, key) == "alice"
    [line] = caplog.messages
    assert line.endswith("file is not a database; the keys that were read before stay valid")
    with pytest.raises(TenantsError, match="file is not a database"):
        Directory().load()


class TestKeysFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "keys.toml"
        file.write_text(entry_text(Tenant("alice"), FILE_KEY, None))
        return file

    @pytest.fixture
    def directory(self, file: Path) -> Iterator[Directory]:
        directory = Directory(file)
        directory.load()
        yield directory
        directory.close()

    def test_it_is_read_again_when_it_changes(self, directory: Directory, file: Path) -> None:
        assert tenant(directory, FILE_KEY) == "alice"
        file.write_text(entry_text(Tenant("bob"), "another key for bob", None) + "# longer\n")
        directory.refresh()
        assert tenant(directory, FILE_KEY) is Refusal.UNKNOWN
        assert tenant(directory, "another key for bob") == "bob"

    def test_a_broken_one_keeps_the_keys_and_is_logged_once(
        self, directory: Directory, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = file.read_text()
        with caplog.at_level(logging.ERROR):
            file.write_text("[[tenant")
            directory.refresh()
            directory.refresh()
        assert tenant(directory, FILE_KEY) == "alice"
        [line] = caplog.messages
        assert f"{file} is not TOML" in line
        file.write_text(content + "\n")
        directory.refresh()
        assert tenant(directory, FILE_KEY) == "alice"

    def test_a_missing_one_is_an_error_at_the_start_only(self, directory: Directory, file: Path) -> None:
        file.unlink()
        directory.refresh()
        assert tenant(directory, FILE_KEY) == "alice"
        with pytest.raises(TenantsError, match="cannot be read"):
            Directory(file).load()

    def test_its_names_replace_those_of_the_database(self, directory: Directory) -> None:
        hidden, other = add("alice", Change(is_admin=True)), add("bob")
        directory.refresh()
        assert tenant(directory, hidden) is Refusal.UNKNOWN
        assert (tenant(directory, FILE_KEY), tenant(directory, other)) == ("alice", "bob")


def test_a_tenant_is_found_by_its_name_while_it_has_a_valid_key(directory: Directory, clock: Clock) -> None:
    assert directory.named("alice") is None
    add("alice", Change(expiry=(clock.now + 10,)))
    directory.refresh()
    found = directory.named("alice")
    assert found is not None
    assert found.name == "alice"
    assert directory.named("bob") is None
    clock.now += 10
    assert directory.named("alice") is None
