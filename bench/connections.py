"""Connections that stall, and more connections at once than a server takes."""

import resource
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
import trio

from bench.records import BenchError
from bench.servers import Server
from bench.stats import percentiles

PROBE_SECONDS = 1.0
MEMORY_SECONDS = 0.5
STALLS = ("head", "body")


@dataclass(frozen=True, slots=True)
class Chat:
    """A short request, as bytes of HTTP/1.1."""

    host: str
    port: int
    head: bytes
    body: bytes

    @classmethod
    def to(cls, url: str, model: str, *, max_tokens: int, deadline: float) -> "Chat":
        """`deadline`: seconds after which the server shall give up."""
        address = urlsplit(url)
        body = orjson.dumps(
            {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": max_tokens}
        )
        head = (
            f"POST {address.path}/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Request-Timeout: {deadline:g}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return cls(address.hostname or "", address.port or 80, head.encode(), body)

    def half(self, stall: str) -> bytes:
        """The request up to the middle of its head or of its body."""
        if stall == "head":
            return self.head[: len(self.head) // 2]
        return self.head + self.body[: len(self.body) // 2]


@dataclass(slots=True)
class Stalled:
    """How connections ended that sent half a request."""

    closed: dict[str, list[float]] = field(default_factory=lambda: {stall: [] for stall in STALLS})
    """Seconds after which the server closed each."""
    still_open: int = 0
    probes: list[float] = field(default_factory=list)
    """Seconds that others waited for a short answer meanwhile."""
    failed_probes: int = 0

    def measures(self) -> dict[str, Any]:
        return {
            **{f"closed_{stall}": len(times) for stall, times in self.closed.items()},
            **{f"last_{stall}_s": max(times, default=None) for stall, times in self.closed.items()},
            "still_open": self.still_open,
            "probes": len(self.probes),
            "failed_probes": self.failed_probes,
            "probe_median_s": percentiles(self.probes)[0],
            "probe_max_s": max(self.probes, default=None),
        }


@dataclass(slots=True)
class Crowd:
    """The outcomes of requests on connections that were opened at once."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By HTTP status; `none` is a connection without an answer."""
    accepted: list[float] = field(default_factory=list)
    """Seconds to the end of each answer with status 200."""
    memory_before: int = 0
    memory_peak: int = 0

    def measures(self) -> dict[str, Any]:
        return {
            "statuses": dict(self.statuses),
            "accepted_median_s": percentiles(self.accepted)[0],
            "accepted_p99_s": percentiles(self.accepted)[2],
            "memory_before_bytes": self.memory_before,
            "memory_peak_bytes": self.memory_peak,
        }


async def stall(chat: Chat, num_connections: int, *, patience: float) -> Stalled:
    """Open connections, send half a head on every other one and half a body on the rest, and wait until all are closed.

    Sends short requests meanwhile, one each second. Gives up after `patience` seconds.
    """
    outcome = Stalled()

    async def hold(kind: str) -> None:
        with trio.move_on_after(patience) as scope, suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(chat.host, chat.port) as stream:
                opened = trio.current_time()
                await stream.send_all(chat.half(kind))
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
                outcome.closed[kind].append(trio.current_time() - opened)
        outcome.still_open += scope.cancelled_caught

    async def probe() -> None:
        while True:
            began = trio.current_time()
            with suppress(OSError, trio.BrokenResourceError):
                if await ask(chat) == "200":
                    outcome.probes.append(trio.current_time() - began)
                else:
                    outcome.failed_probes += 1
            await trio.sleep(PROBE_SECONDS)

    async with trio.open_nursery() as probing:
        probing.start_soon(probe)
        async with trio.open_nursery() as holding:
            for number in range(num_connections):
                holding.start_soon(hold, STALLS[number % len(STALLS)])
        probing.cancel_scope.cancel()
    return outcome


async def crowd(chat: Chat, num_connections: int, server: Server, *, patience: float) -> Crowd:
    """Open connections at once, send a request on each, and watch the memory of the server."""
    outcome = Crowd(memory_before=server.usage().memory_bytes)

    async def one() -> None:
        began = trio.current_time()
        status = "none"
        with trio.move_on_after(patience), suppress(OSError, trio.BrokenResourceError):
            status = await ask(chat)
        outcome.statuses[status] += 1
        if status == "200":
            outcome.accepted.append(trio.current_time() - began)

    async def watch() -> None:
        while True:
            used = await trio.to_thread.run_sync(server.usage)
            outcome.memory_peak = max(outcome.memory_peak, used.memory_bytes)
            await trio.sleep(MEMORY_SECONDS)

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as asking:
            for _ in range(num_connections):
                asking.start_soon(one)
        watching.cancel_scope.cancel()
    return outcome


async def ask(chat: Chat) -> str:
    """The HTTP status of a request, when its answer is complete. `none` if the server closed without one."""
    received = b""
    async with await trio.open_tcp_stream(chat.host, chat.port) as stream:
        with suppress(trio.BrokenResourceError):  # a refusal may come before the request is sent
            await stream.send_all(chat.head + chat.body)
        with suppress(trio.BrokenResourceError):
            while more := await stream.receive_some():
                received += bytes(more)
    words = received.split(b" ", 2)
    return words[1].decode() if len(words) > 1 and words[0].startswith(b"HTTP/") else "none"


def allow_files(count: int) -> None:
    """Raise this process's limit for open files. Raises BenchError if the system does not allow so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= count:
        return
    if hard < count:
        raise BenchError(f"only {hard} files may be open, but {count} are needed: raise the limit with ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


async def measure(
    server: Server,
    *,
    num_stalled: int,
    num_crowd: int,
    deadline: float,
    patience: float,
    print_line: Callable[[str], None],
) -> Mapping[str, Mapping[str, Any]]:
    """Start the server, and measure both. Raises BenchError if it cannot be started or ends."""
    allow_files(max(num_stalled, num_crowd) + 256)
    try:
        await server.start()
        chat = Chat.to(server.spec.url, server.model, max_tokens=4, deadline=deadline)
        stalled = (await stall(chat, num_stalled, patience=patience)).measures()
        print_line(f"{num_stalled} stalled connections: {stalled}")
        crowded = (await crowd(chat, num_crowd, server, patience=patience)).measures()
        print_line(f"{num_crowd} connections at once: {crowded}")
        if not server.alive:
            raise BenchError(server.exit_message())
    finally:
        await server.stop()
    return {"stalled": stalled, "crowd": crowded}
