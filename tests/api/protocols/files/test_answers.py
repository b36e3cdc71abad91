"""Files over the app, without a network. The time of slow uploads is virtual."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from quart_trio.testing.connections import TestHTTPConnection as Connection
from trio.testing import MockClock

from api.http.access import Access
from api.http.body import STALL_SECONDS
from api.storage.quota import Quota
from api.storage.storage import EXPIRY_SECONDS, Storage
from api.tenants.directory import Directory
from api.text.tokenizer import Tokenizer
from tests.api.fakes import Server, leave
from tests.api.protocols.files.test_form import END, FILE, PURPOSE, TYPE, part

HEADERS = {"Content-Type": TYPE}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path, Quota(owner_files=2, owner_bytes=1_000))
    yield storage
    storage.close()


@pytest.fixture
def server(tokenizer: Tokenizer, storage: Storage) -> Server:
    return Server(tokenizer, storage=storage, url="/v1/files")


def stored(storage: Storage) -> list[str]:
    return [entry.name for entry in storage.files.folder.iterdir()]


async def upload(server: Server, *parts: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await server.post_raw(b"".join(parts), HEADERS | headers)
    return response.status_code, orjson.loads(await response.get_data())


async def answer(connection: Connection) -> tuple[int | None, str]:
    data = b""
    with suppress(trio.EndOfChannel):
        while True:
            data += await connection.receive()
    return connection.status_code, orjson.loads(data)["error"]["code"]


@pytest.mark.parametrize("sent", [b"", PURPOSE, PURPOSE + FILE[:-3]])
async def test_an_upload_that_stalls_is_refused(
    server: Server, storage: Storage, autojump_clock: MockClock, sent: bytes
) -> None:
    connection = server.connect(HEADERS)
    async with connection:
        if sent:
            await connection.send(sent)
        assert await answer(connection) == (408, "request_timeout")
    assert trio.current_time() == pytest.approx(STALL_SECONDS)
    assert stored(storage) == []


async def test_a_client_that_leaves_leaves_nothing(server: Server, storage: Storage) -> None:
    connection = server.connect(HEADERS)
    async with connection:
        await connection.send(PURPOSE + part("file", b"x" * 300_000, "f")[:-2])
        await leave(connection)
    assert stored(storage) == []
    assert (await upload(server, PURPOSE, FILE, END))[0] == 200


async def test_a_body_without_an_end_of_its_form_leaves_nothing(server: Server, storage: Storage) -> None:
    status, body = await upload(server, PURPOSE, FILE)
    assert (status, body["error"]["code"]) == (400, "invalid_value")
    assert stored(storage) == []


async def test_a_full_disk_is_the_uploaders_error(
    server: Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        response = await server.post_raw(PURPOSE + FILE + END, HEADERS)
    error = orjson.loads(await response.get_data())["error"]
    assert (response.status_code, error["code"]) == (507, "insufficient_storage")
    assert error["message"] == "The server's disk is full."
    assert response.headers["x-should-retry"] == "false"
    assert stored(storage) == []
    assert (await upload(server, PURPOSE, FILE, END))[0] == 200


async def test_more_than_the_quota_is_refused(server: Server, storage: Storage) -> None:
    status, body = await upload(server, PURPOSE, part("file", b"x" * 1_001, "f"), END)
    assert (status, body["error"]["code"]) == (507, "storage_quota_exceeded")
    for _ in range(2):
        assert (await upload(server, PURPOSE, FILE, END))[0] == 200
    assert (await upload(server, PURPOSE, FILE, END))[0] == 507


async def test_too_many_uploads_at_once_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    storage = Storage(tmp_path, Quota(owner_uploads=1))
    server = Server(tokenizer, storage=storage, url="/v1/files")
    other = storage.files.begin("", "f", "batch")
    response = await server.post_raw(PURPOSE + FILE + END, HEADERS)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    other.abort()
    assert (await upload(server, PURPOSE, FILE, END))[0] == 200
    storage.close()


async def test_a_file_that_the_disk_lost_is_an_error_of_its_owner(server: Server, storage: Storage) -> None:
    _, file = await upload(server, PURPOSE, FILE, END)
    (storage.files.folder / file["id"]).unlink()
    response = await server.client.get(f"/v1/files/{file['id']}/content")
    error = orjson.loads(await response.get_data())["error"]
    assert (response.status_code, error["code"]) == (500, "storage_error")
    assert str(storage.files.folder) not in error["message"]
    assert (await server.client.delete(f"/v1/files/{file['id']}")).status_code == 200


async def test_without_storage_every_operation_says_why(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, storage="batches.db is damaged", url="/v1/files")
    status, body = await upload(server, PURPOSE, FILE, END)
    assert (status, body["error"]["message"]) == (503, "batches.db is damaged")
    for path in ("/v1/files", "/v1/files/file-1", "/v1/files/file-1/content"):
        assert (await server.client.get(path)).status_code == 503


async def test_tenants_do_not_see_the_files_of_others(tokenizer: Tokenizer, storage: Storage, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    names = ("alice", "bob")
    keys.write_text("".join(f'[[tenant]]\nname = "{name}"\nkeys = ["the secret key of {name}"]\n' for name in names))
    directory = Directory(keys)
    directory.load()
    server = Server(tokenizer, storage=storage, url="/v1/files", access=Access(directory, demands_keys=True))
    alice, bob = ({"Authorization": f"Bearer the secret key of {name}"} for name in names)
    assert (await upload(server, PURPOSE, FILE, END))[0] == 401
    assert stored(storage) == []
    _, file = await upload(server, PURPOSE, FILE, END, **alice)
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        assert (await server.client.get(path, headers=bob)).status_code == 404
        assert (await server.client.get(path, headers=alice)).status_code == 200
    assert (await server.client.delete(f"/v1/files/{file['id']}", headers=bob)).status_code == 404
    assert orjson.loads(await (await server.client.get("/v1/files", headers=bob)).get_data())["data"] == []
    assert orjson.loads(await (await server.client.get("/v1/files", headers=alice)).get_data())["data"] == [file]


async def test_expired_files_are_removed_by_a_task(storage: Storage, mock_clock: MockClock) -> None:
    now = 1_000.0
    storage.files._now = lambda: now
    first, second = (storage.files.begin("a", "f", "batch", seconds).finish() for seconds in (60, 120))
    now = 1_060.0

    async def wait_stored(expected: list[str]) -> None:
        while stored(storage) != expected:  # a thread removes them, in real time
            mock_clock.jump(EXPIRY_SECONDS)
            await trio.lowlevel.checkpoint()

    assert len(stored(storage)) == 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.run)
        await wait_stored([second.id])
        now = 1_120.0
        await wait_stored([])
        nursery.cancel_scope.cancel()
    assert storage.files.get("a", first.id) is None
