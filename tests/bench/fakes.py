"""A server that sends the bytes of a test, and a chat that answers in virtual time."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import orjson
import trio

from bench.records import Ask, Record

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"
SECONDS = 120.0
"""A time limit that no test here reaches, even on a busy machine."""

Script = Callable[[dict[str, Any], trio.SocketStream], Awaitable[None]]


_port_numbers = count(16 * os.getpid())


def free_port() -> int:
    """A port below those that systems assign, from a range of this process: no other process takes it meanwhile."""
    while True:
        port = 10_000 + next(_port_numbers) % 6_000
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def content(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def role() -> bytes:
    return event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


def finish(reason: str = "length") -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"choices": [], "usage": counts})


def plain(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


class FakeServer:
    """Answers GET /models; the script answers each completion."""

    def __init__(self, port: int, script: Script) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self._script = script

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):  # the client may disconnect
                await self._answer(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        head, _, body = received.partition(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models "):
            await stream.send_all(plain("200 OK", b'{"data": [{"id": "fake"}]}'))
            return
        assert head.startswith((b"POST /v1/chat/completions ", b"POST /v1/completions "))
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += await stream.receive_some()
        self.heads.append(head)
        self.bodies.append(orjson.loads(body))
        await self._script(self.bodies[-1], stream)


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[FakeServer]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = FakeServer(listeners[0].socket.getsockname()[1], script)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


def sending(*parts: bytes) -> Script:
    """A script that sends each part with one write."""

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)

    return script


def record(
    *chunks: float,
    start: float = 0.0,
    end: float | None = None,
    prompt: int | None = 10,
    tokens: int = 0,
    cached: int | None = None,
    error: str | None = None,
    aborted: bool = False,
    from_usage: bool = True,
    role: str = "",
) -> Record:
    """A record. By default it ends with its last chunk."""
    return Record(
        role=role,
        start=start,
        chunks=chunks,
        end=end if end is not None else (chunks or (start,))[-1],
        prompt_tokens=prompt,
        completion_tokens=tokens,
        cached_tokens=cached,
        tokens_from_usage=from_usage,
        finish_reason=None if error or aborted else "length",
        error=error,
        aborted=aborted,
        text="",
    )


class FakeChat:
    """A chat in trio's (virtual) time: `first` seconds to the first chunk, then `gap` seconds for each."""

    def __init__(self, first: float = 1.0, gap: float = 0.5, fails: Callable[[Ask], bool] = lambda _: False):
        self.first = first
        self.gap = gap
        self.fails = fails
        self.asks: list[Ask] = []
        self.starts: list[float] = []
        self.running = 0
        self.peak = 0

    async def __call__(
        self, ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record:
        number = len(self.asks)
        self.asks.append(ask)
        start = trio.current_time()
        self.starts.append(start)
        self.running += 1
        self.peak = max(self.peak, self.running)
        chunks: list[float] = []
        with abort or trio.CancelScope() as scope:
            await trio.sleep(self.first)
            for _ in range(ask.max_tokens):
                chunks.append(trio.current_time())
                if watch is not None:
                    watch(len(chunks))
                await trio.sleep(self.gap)
        self.running -= 1
        failed = self.fails(ask)
        return Record(
            role=ask.role,
            start=start,
            chunks=tuple(chunks),
            end=trio.current_time(),
            prompt_tokens=None,
            completion_tokens=len(chunks),
            cached_tokens=None,
            tokens_from_usage=False,
            finish_reason="length",
            error="refused" if failed else None,
            aborted=scope.cancelled_caught,
            text=f"answer {number}",
        )
