import errno
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.storage.database import Database
from api.storage.errors import BusyError, QuotaError, StorageError, StorageFullError
from api.storage.files import FileStore, StoredFile
from api.storage.quota import Quota, Usage


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.9

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., FileStore]


@pytest.fixture
def make(tmp_path: Path, database: Database, clock: Clock) -> Make:
    def make(quota: Quota | None = None) -> FileStore:
        return FileStore(tmp_path, database, quota=quota, now=clock, spare_bytes=0)

    return make


@pytest.fixture
def store(make: Make) -> FileStore:
    return make()


def add(store: FileStore, owner: str = "a", data: bytes = b"12", **given: object) -> StoredFile:
    upload = store.begin(owner, str(given.pop("filename", "f.jsonl")), str(given.pop("purpose", "batch")), **given)  # type: ignore[arg-type]
    upload.write(data)
    return upload.finish()


def content(store: FileStore, file: StoredFile) -> bytes:
    with store.open(file) as opened:
        return opened.read()


def names(store: FileStore) -> set[str]:
    return {entry.name for entry in store.folder.iterdir()}


def test_a_file_is_what_was_written(store: FileStore) -> None:
    upload = store.begin("a", "../../x\n\x00.jsonl", "batch", 3600)
    for part in (b"one\n", b"", b"two\n"):
        upload.write(part)
    assert store.list("a") == []
    file = upload.finish()
    assert file == StoredFile(file.id, "a", "../../x\n\x00.jsonl", "batch", 8, 1000, 4600)
    assert store.get("a", file.id) == file
    assert content(store, file) == b"one\ntwo\n"
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path(file).stat().st_mode) == 0o600
    assert names(store) == {file.id}


def test_nobody_finds_the_files_of_others(store: FileStore) -> None:
    file = add(store, "a")
    assert store.get("b", file.id) is None
    assert store.list("b") == []
    assert not store.delete("b", file.id)
    with pytest.raises(KeyError):
        store.list("b", after=file.id)
    assert store.get("a", file.id) == file


def test_a_deleted_file_is_gone_but_can_be_read_to_its_end(store: FileStore) -> None:
    file = add(store)
    with store.open(file) as opened:
        assert store.delete("a", file.id)
        assert opened.read() == b"12"
    assert not store.delete("a", file.id)
    assert store.get("a", file.id) is None
    assert names(store) == set()
    with pytest.raises(StorageError, match=file.id):
        store.open(file)


def test_lists_have_pages(store: FileStore) -> None:
    made = [add(store, purpose=purpose) for purpose in ("batch", "assistants", "batch", "batch")]
    add(store, "b")
    assert store.list("a") == made[::-1]
    assert store.list("a", order="asc", limit=3) == made[:3]
    assert store.list("a", "batch", made[1].id, 1, "asc") == [made[2]]
    assert store.list("a", "batch", made[1].id, 2, "desc") == [made[0]]


@pytest.mark.parametrize("access", ["get", "list", "task", "delete"])
def test_an_expired_file_is_gone(store: FileStore, clock: Clock, access: str) -> None:
    file, other = add(store, expires_after=3600), add(store)
    clock.time = 4599.9
    assert store.remove_expired() == 0
    assert store.get("a", file.id) == file
    clock.time = 4600.0
    match access:
        case "get":
            assert store.get("a", file.id) is None
        case "list":
            assert store.list("a") == [other]
        case "task":
            assert store.remove_expired() == 1
        case _:
            assert not store.delete("a", file.id)
    if access != "list":
        assert names(store) == {other.id}
    assert store.get("a", other.id) == other


def test_an_aborted_upload_leaves_nothing(make: Make) -> None:
    store = make(Quota(owner_files=1, owner_bytes=3))
    upload = store.begin("a", "f", "batch")
    upload.write(b"123")
    upload.abort()
    upload.abort()
    assert names(store) == set()
    assert content(store, add(store, data=b"123")) == b"123"


def test_the_quota_counts_uploads_and_what_an_earlier_process_stored(make: Make) -> None:
    quota = Quota(owner_files=2, owner_bytes=5, all_files=3, all_bytes=8)
    add(make(quota), data=b"123")
    store = make(quota)
    upload = store.begin("a", "f", "batch")
    upload.write(b"45")
    with pytest.raises(QuotaError, match="5 bytes"):
        upload.write(b"6")
    with pytest.raises(QuotaError, match="have 2 files"):
        store.begin("a", "f", "batch")
    other = store.begin("b", "f", "batch")
    with pytest.raises(QuotaError, match="8 bytes"):
        other.write(b"1234")
    with pytest.raises(QuotaError, match="keep 3 files"):
        store.begin("c", "f", "batch")
    assert add(store, "a", b"123456789", is_bounded=False).num_bytes == 9  # a result is never refused
    store.delete("a", upload.finish().id)
    other.abort()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.booleans())))
def test_usage_is_the_sum_of_what_is_stored(changes: list[tuple[str, int, bool]]) -> None:
    quota = Quota(owner_files=3, owner_bytes=12, all_files=4, all_bytes=16)
    usage = Usage(quota, [])
    stored: list[tuple[str, int]] = []
    for owner, size, removes in changes:
        own = [each for each in stored if each[0] == owner]
        if removes and own:
            usage.remove(owner, own[0][1])
            stored.remove(own[0])
            continue
        has_room = len(own) < 3 and len(stored) < 4
        fits = sum(s for _, s in own) + size <= 12 and sum(s for _, s in stored) + size <= 16
        try:
            usage.begin(owner, is_bounded=True)
        except QuotaError:
            assert not has_room
            continue
        assert has_room
        try:
            usage.grow(owner, size, is_bounded=True)
        except QuotaError:
            assert size
            assert not fits
            usage.remove(owner, 0)
        else:
            assert fits
            stored.append((owner, size))
        usage.end(owner, is_bounded=True)


def test_only_some_uploads_run_at_once(make: Make) -> None:
    store = make(Quota(owner_uploads=2, all_uploads=3))
    own = [store.begin("a", "f", "batch") for _ in range(2)]
    with pytest.raises(BusyError):
        store.begin("a", "f", "batch")
    other = store.begin("b", "f", "batch")
    with pytest.raises(BusyError):
        store.begin("c", "f", "batch")
    result = store.begin("a", "f", "batch_output", is_bounded=False)
    own[0].abort()
    other.finish()
    more = [store.begin(owner, "f", "batch") for owner in "ac"]
    for each in (*own, result, *more):
        each.abort()


def test_a_full_disk_is_an_error_of_the_upload(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    upload = store.begin("a", "f", "batch")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageFullError, match="disk is full"):
            upload.finish()
    assert names(store) == set()
    assert store.list("a") == []
    add(store)


def test_uploads_leave_room_on_the_disk(tmp_path: Path, database: Database) -> None:
    store = FileStore(tmp_path, database, spare_bytes=2**62)
    upload = store.begin("a", "f", "batch")
    with pytest.raises(StorageFullError):
        upload.write(b"1")
    upload.abort()
    assert names(store) == set()


def test_what_else_a_transaction_changes_succeeds_or_fails_with_it(store: FileStore) -> None:
    def rename(connection: sqlite3.Connection, file: StoredFile) -> None:
        connection.execute("UPDATE files SET filename = 'other' WHERE id = ?", (file.id,))

    def fail(connection: sqlite3.Connection, file: StoredFile) -> None:
        rename(connection, file)
        raise LookupError

    file = store.begin("a", "f", "batch").finish(rename)
    assert [each.filename for each in store.list("a")] == ["other"]
    with pytest.raises(LookupError):
        store.begin("a", "f", "batch").finish(fail)
    with pytest.raises(LookupError):
        store.delete("a", file.id, fail)
    assert [each.id for each in store.list("a")] == [file.id]
    assert names(store) == {file.id}


KILLS = """
import os, signal, sys, tempfile
from pathlib import Path
from api.storage import files
from api.storage.database import Database

CHANGES = ("fsync", "close", "rename", "execute", "unlink")

def child(folder, instant, said):
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        calls += event == "c_call" and argument.__name__ in CHANGES
        if calls == instant:
            os.kill(os.getpid(), signal.SIGKILL)
    store = files.FileStore(folder, Database(folder), spare_bytes=0)
    upload = store.begin("a", "f", "batch")
    upload.write(b"12")
    sys.setprofile(count)
    file = upload.finish()
    os.write(said, b"1")
    store.delete("a", file.id)
    os.write(said, b"2")
    os._exit(0)

instant, status = 0, 1
while status:
    instant += 1
    with tempfile.TemporaryDirectory() as name:
        folder, (heard, said) = Path(name), os.pipe()
        if not (pid := os.fork()):
            child(folder, instant, said)
        status = os.waitpid(pid, 0)[1]
        os.close(said)
        steps = os.read(heard, 9)
        os.close(heard)
        database = Database(folder)
        store = files.FileStore(folder, database, spare_bytes=0)
        stored = store.list("a")
        database.close()
        assert {each.name for each in store.folder.iterdir()} == {each.id for each in stored}, instant
        assert [store.path(each).read_bytes() for each in stored] in ([], [b"12"]), instant
        assert not stored or steps in (b"", b"1"), instant
print(instant)
"""


def test_a_process_killed_at_any_instant_leaves_a_whole_file_or_none() -> None:
    done = subprocess.run([sys.executable, "-c", KILLS], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) > 10
