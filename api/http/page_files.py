"""The web page at `/`: the files that `web/build.py` wrote into the folder page/."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

import trio
from quart import request

from api.errors import ApiError
from api.protocols.call import Call, Reply

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from other hosts, and runs no script that stands in a document or in an answer."""
SECURITY: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
FOREVER: Final = "public, max-age=31536000, immutable"
"""For files whose names change with their contents."""
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
MISSING: Final = (
    "The web page of this server is not built, because npm's registry could not be reached when Cortex was installed.\n"
    "'make page' in Cortex's source builds it, and so does another installation. The API works without it: see /docs.\n"
)


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page, with what its answer says about it."""

    data: bytes
    gzipped: bytes | None
    """The same, compressed; None if that is not much smaller."""
    content_type: str
    cache_control: str
    etag: str
    """Without quotes."""


def page_folder() -> Traversable:
    return files("api.http") / "page"


def load(folder: Traversable) -> dict[str, File]:
    """The page's files by their names below `/`; the page itself is `""`. Empty if it has not been built."""
    index, assets = folder / "index.html", folder / "assets"
    if not (index.is_file() and assets.is_dir()):
        return {}
    found = {f"assets/{each.name}": _file(each, FOREVER) for each in assets.iterdir() if _type(each) is not None}
    return found | {"": _file(index, "no-cache")}


def _file(source: Traversable, cache_control: str) -> File:
    data = source.read_bytes()
    gzipped = gzip.compress(data, mtime=0)
    is_smaller = len(gzipped) < 0.8 * len(data)
    etag = hashlib.sha256(data).hexdigest()[:32]
    return File(data, gzipped if is_smaller else None, _type(source) or "", cache_control, etag)


def _type(source: Traversable) -> str | None:
    return TYPES.get(PurePosixPath(source.name).suffix)


@cache
def _loaded() -> dict[str, File]:
    return load(page_folder())


async def page(call: Call[None]) -> Reply:  # noqa: ARG001 - it is the same for all calls
    """The page, or how to build it if it is not there."""
    found = (await trio.to_thread.run_sync(_loaded)).get("")
    if found is None:
        return Reply(MISSING.encode(), 404, "text/plain; charset=utf-8", {"Cache-Control": "no-store"})
    return _reply(found)


async def asset(call: Call[None]) -> Reply:
    """A file of the page. Raises ApiError 404."""
    found = (await trio.to_thread.run_sync(_loaded)).get(f"assets/{call.path['file']}")
    if found is None:
        raise ApiError(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")
    return _reply(found)


def _reply(file: File) -> Reply:
    """The file in the form that the browser takes, or 304 if it has it."""
    etag, data, encoding = file.etag, file.data, {}
    if file.gzipped is not None and request.accept_encodings["gzip"] > 0:
        etag, data, encoding = f"{etag}-gzip", file.gzipped, {"Content-Encoding": "gzip"}
    headers = {"Cache-Control": file.cache_control, "ETag": f'"{etag}"', "Vary": "Accept-Encoding", **SECURITY}
    if request.if_none_match.contains_weak(etag):
        return Reply(b"", 304, file.content_type, headers)
    return Reply(data, 200, file.content_type, headers | encoding)
