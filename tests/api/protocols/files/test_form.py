"""Forms of uploads, piece by piece."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError
from api.protocols.files import form
from api.protocols.files.form import MAX_PARTS, MAX_VALUE_BYTES, FileReceiver
from api.storage.files import StoredFile, Upload
from api.storage.storage import Storage

TYPE = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    storage = Storage(tmp_path_factory.mktemp("home"))
    yield storage
    storage.close()


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    given = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'.encode() + value + b"\r\n"


PURPOSE = part("purpose", b"batch")
FILE = part("file", b"12", "f.jsonl")
END = b"--b--\r\n"


def receive(storage: Storage, *pieces: bytes, content_type: str = TYPE) -> tuple[StoredFile, bytes]:
    """What was stored. Nothing stays."""

    def begin(name: str) -> Upload:
        return storage.files.begin("a", name, "")

    receiver = FileReceiver(content_type, begin)
    try:
        for piece in pieces:
            receiver.feed(piece)
        file = receiver.finish()
        with storage.files.open(file) as opened:
            data = opened.read()
        storage.files.delete("a", file.id)
        return file, data
    finally:
        receiver.abort()
        assert list(storage.files.folder.iterdir()) == []


@pytest.mark.parametrize("parts", [(PURPOSE, FILE, END), (FILE, PURPOSE, END), (FILE, PURPOSE, END, b"epilogue")])
def test_parts_come_in_any_order(storage: Storage, parts: tuple[bytes, ...]) -> None:
    file, data = receive(storage, *parts)
    assert (file.filename, file.purpose, file.num_bytes, data) == ("f.jsonl", "batch", 2, b"12")


@given(data=st.binary(max_size=40) | st.text("\r\n-b", max_size=40).map(str.encode), cuts=st.sets(st.integers(0, 200)))
def test_the_file_is_the_same_however_it_is_cut(storage: Storage, data: bytes, cuts: set[int]) -> None:
    if b"\r\n--b" in b"\r\n" + data:
        data = b""
    body = PURPOSE + part("file", data, "f") + END
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    assert receive(storage, *(body[i:j] for i, j in pairwise(places)))[1] == data


@pytest.mark.parametrize(
    ("parts", "param", "message"),
    [
        ([FILE, END], "purpose", "Missing"),
        ([PURPOSE, END], "file", "Missing"),
        ([PURPOSE, FILE], None, "last boundary is missing"),
        ([b""], None, "last boundary is missing"),
        ([b"{}"], None, "cannot be read"),
        ([PURPOSE, PURPOSE, FILE, END], "purpose", "twice"),
        ([PURPOSE, FILE, FILE, END], "file", "twice"),
        ([PURPOSE, part("file", b"1"), END], "file", "must be a file"),
        ([part("purpose", b"\xff"), FILE, END], "purpose", "Invalid value"),
        ([part("purpose", b"x" * (MAX_VALUE_BYTES + 1)), FILE, END], "purpose", "too long"),
        ([PURPOSE, FILE, part("other", b"1"), END], "other", "Unrecognized"),
        ([b"--b\r\nX: y\r\n\r\n1\r\n", END], None, "has no name"),
        ([b"--b\r\nbad header\r\n\r\n1\r\n", END], None, "cannot be read"),
        ([b"--b\r\n" + b"X" * 10_000 + b": y\r\n"], None, "cannot be read"),
        ([part(str(n), b"") for n in range(MAX_PARTS + 1)], None, "more than 16 parts"),
    ],
)
def test_an_invalid_form_is_refused(storage: Storage, parts: list[bytes], param: str | None, message: str) -> None:
    with pytest.raises(ApiError, match=message) as error:
        receive(storage, b"".join(parts))
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", f"{TYPE}{'b' * 300}"])
def test_another_media_type_is_refused(storage: Storage, content_type: str) -> None:
    with pytest.raises(ApiError) as error:
        receive(storage, content_type=content_type)
    assert error.value.status in (400, 415)


def test_a_file_that_is_too_large_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "MAX_FILE_BYTES", 2)
    receive(storage, PURPOSE, FILE, END)
    with pytest.raises(ApiError) as error:
        receive(storage, PURPOSE, part("file", b"123", "f"), END)
    assert (error.value.status, error.value.param) == (413, "file")


def test_a_wrong_purpose_is_refused_before_the_file(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ApiError):
        receive(storage, part("purpose", b"x"), part("file", b"", "f")[:-2])
