"""A stand-in for a model hub: the part of Hugging Face's HTTP API that huggingface_hub uses, and its failures."""

import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

PIECE = 16 * 1024


@dataclass
class Asked:
    """A request for bytes of a file."""

    file: str
    range: str | None
    authorization: str | None
    """The header that the host of large files receives, which is not the hub."""


@dataclass
class Hub:
    """Serves on the loopback address until its `with` block ends."""

    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """The files of each repository, by name and revision. Files that end in .gguf are in large file storage."""
    refusal: tuple[int, str] | None = None
    """The status, and the library's error code, with which every request is refused."""
    file_refusal: tuple[int, str] | None = None
    """The same, but only for requests of files."""
    budget: int | None = None
    """Bytes of files that are sent before connections are lost and new ones are refused."""
    cut_once: bool = False
    """Whether only the first connection is lost."""
    waits: bool = False
    """Whether an exhausted budget makes answers wait instead, until the hub is closed."""
    corrupts: bool = False
    ranges: bool = True
    range_refusal: bool = False
    """Whether ranges that do not begin at 0 are refused, as when the file is shorter than that."""
    token: str | None = None
    """The token that requests must have, if any."""
    html: bool = False
    """Whether every answer is a web page, as from a server that is not a hub."""
    asked: list[Asked] = field(default_factory=list)
    listings: int = 0
    sent: int = 0
    """Bytes of files that were sent."""
    paths: list[str] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.repositories[name, revision] = files

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.urlsplit(handler.path).path
        self.paths.append(path)
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        authorization = handler.headers.get("Authorization")
        if self.html:
            return _send(handler, 200, b"<!doctype html>", {"Content-Type": "text/html"})
        if self.refusal:
            return _refuse(handler, *self.refusal)
        if self.token and parts[0] != "cdn" and authorization != f"Bearer {self.token}":
            return _refuse(handler, 401, "")
        if parts[0] == "cdn":
            file = next(
                (name, content)
                for files in self.repositories.values()
                for name, content in files.items()
                if hashlib.sha256(content).hexdigest() == parts[1]
            )
            return self._send_file(handler, *file)
        if parts[:2] == ["api", "models"] and len(parts) == 6 and parts[4] == "revision":
            self.listings += 1
            return self._list(handler, f"{parts[2]}/{parts[3]}", parts[5])
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve(handler, f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        return _refuse(handler, 404, "")

    def _list(self, handler: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        files = self.repositories.get((name, revision))
        if files is None:
            known = any(each == name for each, _ in self.repositories)
            return _refuse(handler, 404, "RevisionNotFound" if known else "RepoNotFound")
        siblings = [_sibling(path, content) for path, content in files.items()]
        body = {"id": name, "sha": _commit(name, revision), "siblings": siblings}
        return _send(handler, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, handler: BaseHTTPRequestHandler, name: str, commit: str, file: str) -> None:
        if self.file_refusal:
            return _refuse(handler, *self.file_refusal)
        files = next(each for key, each in self.repositories.items() if _commit(*key) == commit)
        if file not in files:
            return _refuse(handler, 404, "EntryNotFound")
        content = files[file]
        if not file.endswith(".gguf"):
            return self._send_file(handler, file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return _send(
            handler, 302, b"", headers | {"Location": f"http://localhost:{self._server.server_port}/cdn/{sha256}"}
        )

    def _send_file(self, handler: BaseHTTPRequestHandler, file: str, content: bytes) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(Asked(file, wanted, handler.headers.get("Authorization")))
        if self.budget == 0 and not self.waits:
            return  # as if no server were there
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.ranges else 0
        if start and self.range_refusal:
            _refuse(handler, 416, "")
            return
        handler.send_response(206 if wanted and self.ranges else 200)
        if self.ranges:
            handler.send_header("Accept-Ranges", "bytes")
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if self.corrupts:
            content = content[:-1] + bytes([content[-1] ^ 1])
        for position in range(start, len(content), PIECE):
            piece = content[position : position + PIECE]
            with self._lock:
                allowed = len(piece) if self.budget is None else min(self.budget, len(piece))
                self.budget = None if self.budget is None else self.budget - allowed
                self.sent += allowed
            handler.wfile.write(piece[:allowed])
            if allowed < len(piece):
                if self.waits:
                    self._closing.wait()
                if self.cut_once:
                    self.budget = None
                return
        return


def _commit(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    if path.endswith(".gguf"):
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 128}
        return {"rfilename": path, "size": len(content), "blobId": "of the pointer", "lfs": lfs}
    git_id = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    return {"rfilename": path, "size": len(content), "blobId": git_id}


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _send(handler, status, b'{"error": "no"}', {"X-Error-Code": code} if code else {})


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(body))}).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
