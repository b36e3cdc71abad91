import sqlite3
import stat
from pathlib import Path

import pytest

from api.storage.database import NAME, Database
from api.storage.errors import StorageError, StorageFullError


def test_the_database_is_private_and_waits_for_the_disk(tmp_path: Path, database: Database) -> None:
    with database.writing() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("kind", ["text", "folder", "page"])
def test_a_damaged_database_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / NAME
    if kind == "text":
        path.write_bytes(b"not a database" * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        database = Database(tmp_path)
        with database.writing() as connection:
            connection.executemany(
                "INSERT INTO files VALUES (NULL, ?, 'a', 'f', 'batch', 1, 1, NULL)", [(str(n),) for n in range(500)]
            )
        database.close()
        data = bytearray(path.read_bytes())
        data[8192:12288] = b"\xff" * 4096
        path.write_bytes(data)
    with pytest.raises(StorageError, match=NAME) as error:
        Database(tmp_path)
    assert "\n" not in str(error.value)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="is of version 99"):
        Database(tmp_path)


def test_a_full_disk_ends_one_change_and_nothing_else(database: Database) -> None:
    row = "INSERT INTO files VALUES (NULL, ?, 'a', ?, 'batch', 1, 1, NULL)"
    with database.writing() as connection:
        connection.execute(row, ("1", ""))
    with database.reading() as connection:
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFullError), database.writing() as connection:
        connection.execute(row, ("2", "x" * 100_000))
    with database.writing() as connection:
        assert connection.execute("SELECT id FROM files").fetchall() == [("1",)]
        connection.execute("DELETE FROM files")
