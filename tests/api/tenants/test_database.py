import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api.sqlite import transaction
from api.tenants import database, store, usage
from api.tenants.database import DatabaseError
from api.tenants.errors import TenantsError
from api.tenants.store import Change
from api.tenants.usage import UsageRow, Used


def test_the_database_and_the_files_beside_it_are_private(home: Path) -> None:
    with database.database() as connection:
        store.add(connection, "alice", Change())
        files = list(home.iterdir())
        assert {file.name for file in files} == {"cortex.db", "cortex.db-wal", "cortex.db-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_that_others_could_open_becomes_private(home: Path) -> None:
    home.mkdir()
    (home / "cortex.db").touch(0o644)
    with database.database():
        assert stat.S_IMODE((home / "cortex.db").stat().st_mode) == 0o600


def test_every_older_version_is_migrated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = database.MIGRATIONS
    monkeypatch.setattr(database, "MIGRATIONS", every[:1])
    with database.database() as connection:
        store.add(connection, "alice", Change(weight=3.0))
        [before] = store.every(connection)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    monkeypatch.setattr(database, "MIGRATIONS", every)
    with database.database() as connection:
        assert store.every(connection) == [before]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(every),)
        assert connection.execute("SELECT count(*) FROM usage").fetchone() == (0,)


def test_a_failed_migration_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = database.MIGRATIONS
    monkeypatch.setattr(
        database, "MIGRATIONS", (*every, "CREATE TABLE more (a INTEGER); CREATE TABLE keys (b INTEGER)")
    )
    with pytest.raises(DatabaseError, match="table keys already exists"), database.database():
        pass
    monkeypatch.setattr(database, "MIGRATIONS", every)
    with database.database() as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)


def test_a_newer_version_is_refused_in_one_line(home: Path) -> None:
    with database.database() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DatabaseError, match="is of version 99, but this Cortex knows only versions up to") as error:
        database.connect()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_a_file_that_is_no_database_is_refused_in_one_line(home: Path, content: bytes | None) -> None:
    home.mkdir()
    if content is None:
        (home / "cortex.db").mkdir()
    else:
        (home / "cortex.db").write_bytes(content)
    with pytest.raises(DatabaseError, match=r"cortex.db cannot be used: .+") as error:
        database.connect()
    assert "\n" not in str(error.value)


def test_only_a_busy_database_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.database() as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    (home / "cortex.db-wal").mkdir()  # so the mode cannot be set
    monkeypatch.setattr(time, "sleep", pytest.fail)
    with pytest.raises(DatabaseError, match=r"cortex.db cannot be used: .+"):
        database.connect()


@pytest.mark.parametrize(
    "change", ["priority = 'high'", "priority = 1", "models = '['", "models = '1'", "weight = 'x'"]
)
def test_a_damaged_entry_is_an_error_in_one_line(home: Path, change: str) -> None:
    with database.database() as connection:
        store.add(connection, "alice", Change())
        connection.execute(f"UPDATE tenants SET {change}")
        for use in (store.every, lambda connection: store.edit(connection, "alice", Change(weight=2))):
            with pytest.raises(TenantsError, match=r"the entry of 'alice' in the database is damaged$"):
                use(connection)


def test_a_failed_change_changes_nothing(home: Path) -> None:
    with database.database() as connection:
        with pytest.raises(OverflowError):
            store.add(connection, "alice", Change(limits={"waiting": 2**64}))
        key = "INSERT INTO keys VALUES (1, 2, x'00', '', 0, NULL, NULL)"
        with pytest.raises(sqlite3.IntegrityError), transaction(connection):
            connection.execute(key)
        assert store.every(connection) == []


EDITS = """
import sys
import time
from api.tenants import store
from api.tenants.database import database
from api.tenants.errors import TenantsError
from api.tenants.store import Change
with database() as connection:  # both processes make the database
    for number in range(20):
        store.add(connection, f"{sys.argv[1]}{number}", Change())
        store.rotate(connection, f"{sys.argv[1]}{number}")
"""


def test_two_processes_can_edit_at_once(home: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", EDITS, name], stderr=subprocess.PIPE) for name in "ab"]
    assert [process.communicate()[1] for process in processes] == [b"", b""]
    with database.database() as connection:
        tenants = store.every(connection)
    assert {each.tenant.name for each in tenants} == {f"{name}{number}" for name in "ab" for number in range(20)}
    assert {len(each.keys) for each in tenants} == {2}


OPEN = "from api.tenants import database; database.connect().close()"
COUNT = """
from api.tenants import database
with database.database() as connection:
    print(connection.execute("SELECT count(*) FROM usage").fetchone()[0])
"""


def in_another_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_a_server_writes_is_kept_while_other_processes_come_and_go() -> None:
    """A process that closes any descriptor of a database loses SQLite's locks on it."""
    kept = database.connect()  # as a server does that follows changes
    try:
        for count in range(1, 4):
            in_another_process(OPEN)
            with database.database() as connection:
                usage.write(connection, [UsageRow("2026-01-01", f"tenant {count}", "m", Used(1))])
            in_another_process(OPEN)
            assert in_another_process(COUNT) == str(count)
    finally:
        kept.close()
