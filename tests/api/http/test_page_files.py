"""The web page: what its answers promise to browsers, and what its files may contain."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from quart import Response, typing

from api.http import page_files
from api.http.app import create_app
from api.http.page_files import POLICY, page_folder
from api.serving.fleet import Fleet

BUILT: Final = "the page is not built: run 'make page'"
SCRIPT: Final = 'console.log("hello")'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A page of two small files, instead of the built one."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "assets" / "main-ABC.js").write_text(SCRIPT)
    (tmp_path / "assets" / "notes.txt").write_text("served to nobody")
    (tmp_path / "LICENSES.txt").write_text("of the packages")
    monkeypatch.setattr(page_files, "page_folder", lambda: tmp_path)
    page_files._loaded.cache_clear()
    yield tmp_path
    page_files._loaded.cache_clear()


def client() -> typing.TestClientProtocol:
    return create_app(Fleet(max_waiting=0)).test_client()


async def get(path: str, **headers: str) -> Response:
    return await client().get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def test_the_page_is_checked_again_at_each_visit(folder: Path) -> None:
    response = await get("/")
    assert (response.status_code, await response.get_data(as_text=True)) == (200, "<!doctype html>")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"


async def test_a_file_with_a_hashed_name_is_kept_by_browsers(folder: Path) -> None:
    response = await get("/assets/main-ABC.js")
    assert (response.status_code, await response.get_data(as_text=True)) == (200, SCRIPT)
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in response.headers["cache-control"]


@pytest.mark.parametrize("path", ["/", "/assets/main-ABC.js"])
async def test_browsers_load_nothing_from_elsewhere(folder: Path, path: str) -> None:
    headers = (await get(path)).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/assets/main-ABC.js"])
async def test_a_file_that_a_browser_has_is_not_sent_again(folder: Path, path: str) -> None:
    etag = (await get(path)).headers["etag"]
    response = await get(path, If_None_Match=f'"other", W/{etag}')
    assert (response.status_code, await response.get_data(as_text=True)) == (304, "")
    assert response.headers["etag"] == etag
    assert response.headers["content-security-policy"] == POLICY
    assert (await get(path, If_None_Match='"other"')).status_code == 200


async def test_head_has_the_headers_of_get(folder: Path) -> None:
    response = await client().head("/assets/main-ABC.js")
    assert (response.status_code, response.headers["content-length"]) == (200, str(len(SCRIPT)))
    assert response.headers["etag"] == (await get("/assets/main-ABC.js")).headers["etag"]


async def test_large_files_are_compressed_for_those_who_take_it(folder: Path) -> None:
    (folder / "assets" / "main-ABC.js").write_text(100 * SCRIPT)
    plain = await get("/assets/main-ABC.js", Accept_Encoding="br, gzip;q=0")
    assert await plain.get_data(as_text=True) == 100 * SCRIPT
    response = await get("/assets/main-ABC.js", Accept_Encoding="br, gzip")
    assert gzip.decompress(await response.get_data(as_text=False)).decode() == 100 * SCRIPT
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert response.headers["etag"] != plain.headers["etag"]


@pytest.mark.parametrize(
    "path", ["/assets/", "/assets/missing.js", "/assets/notes.txt", "/assets/../LICENSES.txt", "/LICENSES.txt", "/x"]
)
async def test_other_paths_are_unknown(folder: Path, path: str) -> None:
    response = await get(path)
    assert response.status_code == 404
    assert (await response.get_json())["error"]["code"] == "unknown_url"


async def test_a_page_that_is_not_built_says_how_to_build_it(folder: Path) -> None:
    (folder / "index.html").unlink()
    response = await get("/")
    assert response.status_code == 404
    assert "make page" in await response.get_data(as_text=True)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


# The files that were built


def test_the_page_has_no_inline_script_and_no_foreign_hosts() -> None:
    index = page_folder() / "index.html"
    assert index.is_file(), BUILT
    text = index.read_text()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [(bool(re.search(r'src="/assets/', attributes)), body.strip()) for attributes, body in scripts] == [
        (True, "")
    ]
    assert "<style" not in text
    assert not re.search(r"\s(style|on\w+)=", text)
    assert "//" not in text


async def test_every_file_of_the_page_is_served() -> None:
    assert page_folder().is_dir(), BUILT
    names = re.findall(r'(?:href|src)="(/assets/[^"]+)"', (page_folder() / "index.html").read_text())
    assert {name.rpartition(".")[2] for name in names} == {"css", "js", "svg"}
    assert {(await get(name)).status_code for name in names} == {200}


def test_style_sheets_load_nothing() -> None:
    assert page_folder().is_dir(), BUILT
    sheets = [each.read_text() for each in (page_folder() / "assets").iterdir() if each.name.endswith(".css")]
    assert sheets
    assert [sheet for sheet in sheets if re.search(r"@import|url\((?!['\"]?data:)", sheet)] == []


def test_the_licences_of_the_packages_come_with_the_page() -> None:
    assert (page_folder() / "LICENSES.txt").is_file(), BUILT
    text = (page_folder() / "LICENSES.txt").read_text()
    names = set(re.findall(r"^(\S+) \d[\d.]* \((?:MIT|BSD|Apache|\(MPL)", text, re.MULTILINE))
    assert {"dompurify", "highlight.js", "marked", "preact"} <= names
