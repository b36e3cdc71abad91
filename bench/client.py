"""Sends one streaming completion and measures it. A failure becomes `Record.error`, not an exception."""

import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import orjson
import trio

from bench.records import Ask, BenchError, Record
from bench.sse import SSEDecoder

CONNECT_SECONDS = 30.0
# A server may keep the body open this long after [DONE] or an error. Then the client closes the connection.
DRAIN_SECONDS = 2.0
MAX_ERROR_CHARS = 300

Identify = Literal["user", "keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server and the fields of every request. `timeout` (a request) and `time_limit` (the run) are seconds."""

    url: str
    model: str
    api_key: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    ignore_eos: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of every request
    identify: Identify = "user"  # how a request names its tenant: OpenAI's field `user`, or the tenant's API key
    keys: Mapping[str, str] = field(default_factory=dict)  # API keys by tenant
    timeout: float = 600.0
    time_limit: float = 3600.0


def require_loopback(url: str) -> None:
    """Raises BenchError if the host is not a loopback address."""
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise BenchError(f"--url {url}: {error}") from error
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise BenchError(f"{url} is not a loopback address: use --allow-remote to put load on another machine")


def open_http(api_key: str | None, timeout: float) -> httpx.AsyncClient:
    """An HTTP client without a limit on connections. It ignores proxy settings, so a loopback address stays local.

    Each request opens a new connection, because some servers close a kept one just as the next request arrives.
    """
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
        headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
        trust_env=False,
    )


async def first_model(http: httpx.AsyncClient, url: str) -> str:
    """The id of the first model that the server lists. Raises BenchError if there is none."""
    try:
        response = await http.get(f"{url}/models", timeout=CONNECT_SECONDS)
        response.raise_for_status()
        return str(orjson.loads(response.content)["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(f"cannot read {url}/models: {_name(error)}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise BenchError(f"{url}/models lists no model: use --model") from error


@dataclass(slots=True)
class _Answer:
    """The part of one stream that has been read so far."""

    chunks: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)  # llama-server's
    finish_reason: str | None = None
    error: str | None = None
    end: float | None = None  # when [DONE] or an error arrived

    def take(self, data: bytes, now: float) -> None:
        if self.end is not None:
            return
        if data == b"[DONE]":
            self.end = now
            return
        try:
            event = orjson.loads(data)
            if event.get("error"):
                self.fail(_message(event), now)
                return
            if isinstance(usage := event.get("usage"), dict):
                self.usage = usage
            if isinstance(timings := event.get("timings"), dict):
                self.timings = timings
            for choice in event.get("choices") or ():
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                delta = choice.get("delta") or {}
                if content := delta.get("content") or choice.get("text"):
                    self.pieces.append(str(content))
                # Reasoning counts for the times, because the user sees it, but it is not part of the answer.
                if content or delta.get("reasoning_content") or delta.get("reasoning"):
                    self.chunks.append(now)
        except (ValueError, AttributeError, TypeError) as error:
            self.fail(f"unreadable event ({error}): {data[:80]!r}", now)

    def fail(self, error: str, now: float) -> None:
        if self.error is None and self.end is None:
            self.error, self.end = error[:MAX_ERROR_CHARS], now

    def _drafts(self) -> tuple[int, int]:
        """Accepted and rejected drafted tokens: from OpenAI's usage, or from llama-server's timings."""
        if "draft_n" in self.timings:
            accepted = int(self.timings.get("draft_n_accepted") or 0)
            return accepted, int(self.timings["draft_n"]) - accepted
        details = self.usage.get("completion_tokens_details") or {}
        names = ("accepted_prediction_tokens", "rejected_prediction_tokens")
        accepted, rejected = (int(details.get(name) or 0) for name in names)
        return accepted, rejected

    def record(self, role: str, start: float, aborted: bool) -> Record:
        now = time.perf_counter()
        if not (aborted or self.finish_reason):
            self.fail("the stream ended early", now)
        tokens = self.usage.get("completion_tokens")
        details = self.usage.get("prompt_tokens_details") or {}
        accepted, rejected = self._drafts()
        return Record(
            role=role,
            start=start,
            chunks=tuple(self.chunks),
            end=now if self.end is None else self.end,
            prompt_tokens=self.usage.get("prompt_tokens"),
            completion_tokens=len(self.chunks) if tokens is None else tokens,
            cached_tokens=details.get("cached_tokens"),
            tokens_from_usage=tokens is not None,
            finish_reason=self.finish_reason,
            error=self.error,
            aborted=aborted and self.error is None,
            text="".join(self.pieces),
            accepted_drafts=accepted,
            rejected_drafts=rejected,
        )


class _Body(httpx.AsyncByteStream):
    """The body of a request. httpx's own is a generator, which stays unfinished if the request is cancelled here."""

    def __init__(self, data: bytes) -> None:
        self._parts = [data]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop()


class Client:
    """Measures requests to one target. When the target's time limit ends, it cancels every request."""

    def __init__(self, http: httpx.AsyncClient, target: Target, on_record: Callable[[], object] = lambda: None) -> None:
        self._http = http
        self._target = target
        self._on_record = on_record
        self._deadline = trio.current_time() + target.time_limit

    async def chat(
        self, ask: Ask, *, abort: trio.CancelScope | None = None, watch: Callable[[int], None] | None = None
    ) -> Record:
        answer = _Answer()
        limit = trio.CancelScope(deadline=min(trio.current_time() + self._target.timeout, self._deadline))
        start = time.perf_counter()
        with abort or nullcontext(), limit:
            try:
                await self._read(ask, answer, limit, watch)
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
                answer.fail(_name(error), time.perf_counter())
        if limit.cancelled_caught:
            now = time.perf_counter()
            answer.fail(f"timeout after {now - start:.1f} s", now)
        record = answer.record(ask.role, start, abort is not None and abort.cancelled_caught)
        self._on_record()
        return record

    async def _read(
        self, ask: Ask, answer: _Answer, limit: trio.CancelScope, watch: Callable[[int], None] | None
    ) -> None:
        decoder = SSEDecoder()
        url = f"{self._target.url}/{'completions' if ask.prompts else 'chat/completions'}"
        request = self._http.build_request("POST", url, json=self._body(ask), headers=self._headers(ask))
        request.stream = _Body(request.content)
        response = await self._http.send(request, stream=True)
        async with aclosing(response):
            if response.status_code != httpx.codes.OK:
                answer.fail(f"HTTP {response.status_code}: {_text(await response.aread())}", time.perf_counter())
                return
            # Read to the end: leaving the loop early would drop httpx's nested generators before they finish.
            async for received in response.aiter_bytes():
                now = time.perf_counter()
                for data in decoder.feed(received):
                    answer.take(data, now)
                if watch is not None:
                    watch(len(answer.chunks))
                if answer.end is not None:
                    limit.deadline = min(limit.deadline, trio.current_time() + DRAIN_SECONDS)

    def _headers(self, ask: Ask) -> dict[str, str]:
        if not ask.tenant or self._target.identify != "keys":
            return {}
        return {"authorization": f"Bearer {self._target.keys[ask.tenant]}"}

    def _body(self, ask: Ask) -> dict[str, Any]:
        target = self._target
        body: dict[str, Any] = {
            "model": target.model,
            **({"prompt": _prompt(ask)} if ask.prompts else {"messages": ask.messages}),
            "max_tokens": ask.max_tokens,
            "temperature": target.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **target.fields,
            **ask.fields,
        }
        if target.top_p is not None:
            body["top_p"] = target.top_p
        if target.ignore_eos:
            body["ignore_eos"] = True
        if ask.tenant and target.identify == "user":
            body["user"] = ask.tenant
        return body


def _prompt(ask: Ask) -> str | tuple[str, ...]:
    """One prompt as a text: not every server streams the completions of a list."""
    return ask.prompts[0] if len(ask.prompts) == 1 else ask.prompts


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _text(body: bytes) -> str:
    try:
        return _message(orjson.loads(body))
    except (ValueError, AttributeError):
        return body[:MAX_ERROR_CHARS].decode(errors="replace")


def _message(event: dict[str, Any]) -> str:
    error = event.get("error", event)
    return str(error["message"]) if isinstance(error, dict) and "message" in error else str(error)
