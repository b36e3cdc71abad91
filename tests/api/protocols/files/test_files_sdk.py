"""Files through OpenAI's SDK and raw sockets, over real HTTP."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from api.protocols.files.request import MAX_FILE_BYTES
from tests.api.protocols.files.served import FileServer
from tests.api.servers import wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    with FileServer(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def client(server: FileServer) -> Iterator[OpenAI]:
    yield server.client
    for file in server.client.files.list():
        server.client.files.delete(file.id)
    assert server.stored == set()


def test_the_sdk_uploads_reads_lists_and_deletes(client: OpenAI) -> None:
    data = b'{"custom_id": "1"}\n' * 100_000
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data), "in.jsonl", "batch")
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.retrieve(file.id) == file
    assert client.files.list().data == [file]
    content = client.files.content(file.id)
    assert content.read() == data
    assert content.response.headers["content-length"] == str(len(data))
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    for gone in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError, match=file.id):
            gone(file.id)


def test_a_file_expires_when_the_client_says(client: OpenAI) -> None:
    file = client.files.create(file=b"1", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    assert client.files.create(file=b"1", purpose="user_data").expires_at is None


def test_lists_have_pages(client: OpenAI) -> None:
    made = [client.files.create(file=b"1", purpose=purpose) for purpose in ("batch", "vision", "batch", "batch")]
    page = client.files.list(limit=3)
    assert page.data == made[:0:-1]
    assert page.has_more
    assert [file.id for file in client.files.list(limit=1, order="asc")] == [file.id for file in made]
    assert client.files.list(purpose="batch", after=made[3].id).data == [made[2], made[0]]
    with pytest.raises(openai.BadRequestError, match="file-unknown"):
        client.files.list(after="file-unknown")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\r\nSet-Cookie: b\x00\x1b[2J", "名前 '\".jsonl", "x" * 800])
def test_a_name_is_only_data(server: FileServer, client: OpenAI, name: str) -> None:
    file = client.files.create(file=(name, b"1"), purpose="batch")
    assert server.stored == {file.id}
    assert client.files.retrieve(file.id).filename == file.filename
    headers = client.files.content(file.id).response.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 2592001}}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after": {"anchor": "last_used", "seconds": 3600}}, "expires_after[anchor]"),
        ({"purpose": "batch", "expires_after": {"seconds": 3600}}, "expires_after[anchor]"),
        ({"purpose": "batch", "extra_body": {"more": "x"}}, "more"),
    ],
)
def test_an_invalid_field_is_named(client: OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=b"1", **fields)
    assert error.value.param == param


def test_the_head_of_a_download_has_its_length(server: FileServer, client: OpenAI) -> None:
    file = client.files.create(file=b"1" * MIB, purpose="batch")
    response = httpx.head(f"{server.url}/files/{file.id}/content")
    assert (response.status_code, response.headers["content-length"]) == (200, str(MIB))


def test_a_large_upload_is_never_in_memory(server: FileServer, client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as large:
        large.truncate(64 * MIB)
    client.files.create(file=b"1" * MIB, purpose="batch")
    before = server.memory
    file = client.files.create(file=path, purpose="batch")
    assert server.memory - before < 8 * MIB
    with client.files.with_streaming_response.content(file.id) as content:
        assert sum(map(len, content.iter_bytes())) == 64 * MIB
    assert server.memory - before < 8 * MIB


def test_a_file_that_says_it_is_too_large_is_refused_before_it_arrives(server: FileServer, client: OpenAI) -> None:
    head = form_head("batch")
    with connection(server, MAX_FILE_BYTES + MIB) as sock:
        sock.sendall(head)
        status, error = answer(sock)
    assert (status, error["code"], error["param"]) == (413, "request_too_large", "file")


def form_head(purpose: str) -> bytes:
    return (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    ).encode()


def connection(server: FileServer, length: int | None, **headers: str) -> socket.socket:
    """A connection that has sent the head of an upload."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    sock.sendall(
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n{more}"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
    )
    return sock


def answer(sock: socket.socket) -> tuple[int, dict[str, str]]:
    with sock.makefile("rb") as reader:
        status = int(reader.readline().split()[1])
        length = 0
        while (line := reader.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, json.loads(reader.read(length)).get("error", {})


def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: FileServer, client: OpenAI) -> None:
    with connection(server, MIB) as sock:
        sock.sendall(form_head("batch") + b"x" * 300_000)
        wait_until(lambda: bool(server.stored), "the upload begins")
    wait_until(lambda: not server.stored, "the upload ends")


def test_expect_100_continue(server: FileServer, client: OpenAI) -> None:
    body = form_head("batch") + b"1\r\n--b--\r\n"
    with connection(server, len(body), Expect="100-continue") as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert answer(sock) == (200, {})
    [file] = client.files.list().data
    assert file.bytes == 1


def test_chunks_without_a_length(server: FileServer, client: OpenAI) -> None:
    body = form_head("batch") + b"1\r\n--b--\r\n"
    with connection(server, None) as sock:
        for byte in body:
            sock.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        assert answer(sock) == (200, {})
    assert client.files.content(client.files.list().data[0].id).read() == b"1"


def test_a_refusal_in_the_middle_of_the_body_arrives(server: FileServer, client: OpenAI) -> None:
    """The purpose is refused at once, while the client is still sending."""
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"x" * 20 * MIB, purpose="other")  # type: ignore[arg-type]
    assert client.files.list().data == []


def test_other_operations_keep_their_limit(server: FileServer, client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(model="m", input="x" * 33 * MIB)
    assert error.value.status_code == 413
