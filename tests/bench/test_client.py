"""The measuring client against a server that sends exactly the bytes of a test."""

import gc
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from bench import client as client_module
from bench.client import Client, Identify, Target, first_model, open_http, require_loopback
from bench.records import Ask, BenchError, Record
from bench.stats import summarize
from tests.bench.fakes import (
    DONE,
    EVENTS,
    SECONDS,
    Script,
    content,
    event,
    finish,
    plain,
    role,
    sending,
    serving,
    usage,
)

ASK = Ask(({"role": "user", "content": "hello"},), 8, "stream")


async def measure(script: Script, watch: Callable[[int], None] | None = None, **settings: Any) -> Record:
    async with serving(script) as server:
        target = Target(url=server.url, model="fake", **settings)
        async with open_http(target.api_key, target.timeout) as http:
            return await Client(http, target).chat(ASK, watch=watch)


async def test_a_record_holds_the_measurements_of_an_answer() -> None:
    record = await measure(
        sending(EVENTS, role(), content("one"), content(" two"), finish("stop"), usage(12, 5, 8), DONE)
    )
    assert record.error is None
    assert record.role == "stream"
    assert record.text == "one two"
    assert len(record.chunks) == 2
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (12, 5, 8)
    assert record.tokens_from_usage
    assert record.finish_reason == "stop"
    assert record.start < record.chunks[0] <= record.chunks[1] <= record.end


OPENAIS = {"completion_tokens_details": {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2}}


@pytest.mark.parametrize(
    ("fields", "drafts"),
    [
        ({"usage": {"completion_tokens": 5} | OPENAIS}, (3, 2)),
        ({"usage": {"completion_tokens": 5}, "timings": {"draft_n": 7, "draft_n_accepted": 4}}, (4, 3)),
        ({"usage": {"completion_tokens": 5, "completion_tokens_details": None}, "timings": {}}, (0, 0)),
    ],
)
async def test_drafts_are_those_of_the_usage_or_of_the_timings(fields: dict[str, Any], drafts: tuple[int, int]) -> None:
    record = await measure(sending(EVENTS, content("a"), finish(), event({"choices": []} | fields), DONE))
    assert (record.accepted_drafts, record.rejected_drafts) == drafts
    assert summarize([record]).accepted_share == (drafts[0] / sum(drafts) if sum(drafts) else None)


async def test_only_chunks_with_content_count() -> None:
    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS + role() + b": ping\n\n")
        await trio.sleep(0.05)
        await stream.send_all(content("one") + finish() + DONE)

    record = await measure(script)
    assert len(record.chunks) == 1
    assert record.chunks[0] - record.start >= 0.05
    assert record.end == record.chunks[0]  # one read


async def test_without_usage_each_chunk_counts_as_a_token() -> None:
    record = await measure(sending(EVENTS, content("a"), content("b"), content("c", "length"), DONE))
    assert record.completion_tokens == 3
    assert not record.tokens_from_usage
    assert record.prompt_tokens is None
    assert record.cached_tokens is None


async def test_a_read_may_split_a_character() -> None:
    chunk = content("grüße 🦙")

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS)
        for cut in range(len(chunk)):
            await stream.send_all(chunk[cut : cut + 1])
            await trio.lowlevel.checkpoint()
        await stream.send_all(finish() + DONE)

    record = await measure(script)
    assert record.error is None
    assert record.text == "grüße 🦙"
    assert len(record.chunks) == 1


async def test_reasoning_counts_for_times_but_is_not_answer_text() -> None:
    thought = event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    record = await measure(sending(EVENTS, thought, content("yes", "stop"), DONE))
    assert len(record.chunks) == 2
    assert record.text == "yes"


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([plain("400 Bad Request", b'{"error": {"message": "too long"}}')], "HTTP 400: too long"),
        ([plain("503 Service Unavailable", b"busy")], "HTTP 503: busy"),
        ([plain("404 Not Found", b'{"detail": "where?"}')], "HTTP 404: {'detail': 'where?'}"),
        ([EVENTS, content("a"), event({"error": {"message": "engine died"}}), DONE], "engine died"),
        ([EVENTS, content("a"), event({"error": "engine died"})], "engine died"),
        ([EVENTS, content("a")], "the stream ended early"),
        ([plain("200 OK", b'{"choices": []}')], "the stream ended early"),
        ([EVENTS, b"data: {no json\n\n"], "unreadable event"),
        ([EVENTS, b"data: [1]\n\n"], "unreadable event"),
        ([EVENTS, event({"choices": [7]})], "unreadable event"),
        ([b"SSH-2.0\r\n\r\n"], "RemoteProtocolError"),
        ([b""], "RemoteProtocolError"),
        ([EVENTS.replace(b"connection: close", b"content-length: 999"), content("a", "stop")], "RemoteProtocol"),
    ],
)
async def test_every_failure_is_in_the_record(parts: list[bytes], error: str) -> None:
    record = await measure(sending(*parts))
    assert record.error is not None
    assert record.error.startswith(error)
    assert record.end >= record.start


async def test_a_refused_connection_is_in_the_record() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, so no other process can listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with open_http(None, SECONDS) as http:
            record = await Client(http, Target(url=url, model="fake")).chat(ASK)
            assert record.error is not None
            assert record.error.startswith("ConnectError")
            with pytest.raises(BenchError, match="cannot read"):
                await first_model(http, url)


@pytest.mark.parametrize("limits", [{"timeout": 500.0}, {"time_limit": 500.0}])
async def test_a_silent_server_times_out(limits: dict[str, float], mock_clock: MockClock) -> None:
    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS + content("a"))
        await trio.sleep_forever()

    def watch(n_chunks: int) -> None:
        mock_clock.jump(500.0 * n_chunks)

    record = await measure(script, watch, **limits)
    assert record.error is not None
    assert re.match(r"timeout after \d+\.\d s$", record.error)
    assert len(record.chunks) == 1
    assert trio.current_time() == 500.0


async def test_the_client_does_not_wait_after_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "DRAIN_SECONDS", 0.02)

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS + content("a", "stop") + DONE + content("late"))
        await trio.sleep_forever()

    with trio.fail_after(SECONDS):
        record = await measure(script)
    assert record.error is None
    assert record.text == "a"
    assert record.end == record.chunks[0]


async def test_a_request_that_is_aborted_while_it_is_sent_leaves_nothing_unfinished() -> None:
    """An unfinished generator would end in a warning at some later moment, in another test."""
    long = Ask(({"role": "user", "content": "x" * (32 << 20)},), 8, "stream")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener, open_http(None, 60.0) as http:
        port = listener.socket.getsockname()[1]  # nobody reads: the body does not fit into the kernel's buffers
        scope = trio.CancelScope(deadline=trio.current_time() + 0.3)
        record = await Client(http, Target(url=f"http://127.0.0.1:{port}/v1", model="fake")).chat(long, abort=scope)
    assert record.aborted
    gc.collect()


async def test_an_aborted_request_is_closed_and_is_not_an_error() -> None:
    gone = trio.Event()

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS + content("a"))
        assert await stream.receive_some() == b""
        gone.set()

    scope = trio.CancelScope()
    seen = []

    def watch(n_chunks: int) -> None:
        seen.append(n_chunks)
        scope.cancel()

    async with serving(script) as server, open_http(None, SECONDS) as http:
        record = await Client(http, Target(url=server.url, model="fake")).chat(ASK, abort=scope, watch=watch)
        with trio.fail_after(SECONDS):
            await gone.wait()
    assert record.aborted
    assert record.error is None
    assert record.completion_tokens == seen[-1] == 1


async def test_a_server_may_close_a_kept_connection() -> None:
    answer = content("a", "stop") + DONE
    head = EVENTS.replace(b"connection: close", b"content-length: %d" % len(answer))

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(head + answer)
        await stream.receive_some()  # the next request, or the end

    async with serving(script) as server, open_http(None, SECONDS) as http:
        client = Client(http, Target(url=server.url, model="fake"))
        records = [await client.chat(ASK) for _ in range(2)]
    assert [record.error for record in records] == [None, None]


async def test_the_fields_of_a_request() -> None:
    script = sending(EVENTS, content("a", "stop"), DONE)
    async with serving(script) as server, open_http("key", SECONDS) as http:
        assert await first_model(http, server.url) == "fake"
        target = Target(url=server.url, model="m", temperature=0.5, top_p=0.9)
        await Client(http, target).chat(ASK)
        await Client(http, Target(url=server.url, model="m", ignore_eos=False)).chat(ASK)
        first, second = server.bodies
        assert b"authorization: bearer key" in server.heads[0].lower()
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert not {"ignore_eos", "top_p"} & set(second)


@pytest.mark.parametrize("identify", ["user", "keys"])
async def test_a_request_names_its_tenant(identify: Identify) -> None:
    async with serving(sending(EVENTS, content("one"), finish(), DONE)) as server:
        target = Target(url=server.url, model="fake", api_key="own", identify=identify, keys={"A": "a-key"})
        async with open_http(target.api_key, target.timeout) as http:
            client = Client(http, target)
            for tenant in ("A", ""):
                await client.chat(replace(ASK, tenant=tenant))
    users = [body.get("user") for body in server.bodies]
    keys = [re.findall(rb"(?i)authorization: Bearer (\S+)", head) for head in server.heads]
    if identify == "user":
        assert (users, keys) == (["A", None], [[b"own"], [b"own"]])
    else:
        assert (users, keys) == ([None, None], [[b"a-key"], [b"own"]])


async def test_a_list_of_prompts_is_one_completion() -> None:
    def text(index: int) -> bytes:
        return event({"choices": [{"index": index, "text": "word", "finish_reason": None}]})

    async with serving(sending(EVENTS, text(0), text(1), finish(), usage(20, 2), DONE)) as server:
        target = Target(url=server.url, model="fake")
        async with open_http(target.api_key, target.timeout) as http:
            record = await Client(http, target).chat(Ask((), 8, prompts=("one", "two")))
    assert (record.error, len(record.chunks), record.completion_tokens) == (None, 2, 2)
    assert server.heads[0].startswith(b"POST /v1/completions ")
    assert server.bodies[0]["prompt"] == ["one", "two"]
    assert "messages" not in server.bodies[0]


async def test_requests_do_not_queue_in_the_client() -> None:
    at_once = 120  # more than httpx opens by default
    arrived = 0
    all_arrived = trio.Event()

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == at_once:
            all_arrived.set()
        await all_arrived.wait()
        await stream.send_all(EVENTS + content("a", "stop") + DONE)

    records = []
    async with serving(script) as server, open_http(None, SECONDS) as http:
        client = Client(http, Target(url=server.url, model="fake", timeout=SECONDS))

        async def one() -> None:
            records.append(await client.chat(ASK))

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(one)
    assert [record.error for record in records] == [None] * at_once


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await measure(sending(EVENTS, content("a", "stop"), DONE))).error is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://127.8.0.1", "http://[::1]:80", "http://localhost:1"])
def test_loopback_addresses_are_accepted(url: str) -> None:
    require_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1",
        "http://0.0.0.0:80",
        "https://api.openai.com/v1",
        "http://127.0.0.1.evil.org",
        "",
        "x",
        "http://[",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(BenchError):
        require_loopback(url)
