"""Streams that can be resumed, over HTTP with a fake engine, in virtual time."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.http.access import Access
from api.http.draining import wait_drained
from api.protocols.answer import PING_SECONDS
from api.protocols.chat.request import ChatRequest
from api.protocols.resumable import HOLD_SECONDS
from api.serving.limits import Limiter
from api.serving.observer import Observers
from api.tenants import store
from api.tenants.database import database
from api.tenants.directory import Directory
from api.tenants.tenant import Limits
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Submit
from tests.api.fakes import MODEL, Server, Stream, chat
from tests.api.http.test_deadlines import BODIES, GENERATING
from tests.api.http.test_records import Reports

RESUME = {"X-Stream-Resume": "1"}
URL = "/v1/chat/completions"
Events = list[tuple[int, str]]


@asynccontextmanager
async def served(tokenizer: Tokenizer, url: str = URL, **options: Any) -> AsyncIterator[Server]:
    server = Server(tokenizer, url=url, limiter=Limiter(default=Limits(concurrent=4)), **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.streams.run)
        yield server
        nursery.cancel_scope.cancel()


def parsed(data: bytes) -> Events:
    """The ids and the data of all events."""
    events = [event for event in data.decode().split("\n\n")[:-1] if not event.startswith(":")]
    found = []
    for event in events:
        head, _, rest = event.partition("\n")
        assert head.startswith("id: ")
        found.append((int(head.removeprefix("id: ")), rest))
    return found


async def read(stream: Stream, text: str) -> Events:
    """The events up to one with this text, which must be the last one that was sent."""
    data = b""
    with trio.fail_after(PING_SECONDS):
        while text.encode() not in data:
            more = await stream.write()
            assert more is not None
            data += more
    return parsed(data)


async def rest(
    server: Server, stream_id: str, after: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The whole answer to a request for the rest."""
    query = "" if after is None else f"?after={after}"
    with trio.fail_after(100):
        response = await server.client.get(f"/v1/streams/{stream_id}{query}", headers=headers)
        await response.get_data(as_text=False)
    return response


async def events_of(response: Response) -> Events:
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return parsed(await response.get_data(as_text=False))


async def code_of(response: Response) -> tuple[int, str]:
    return response.status_code, orjson.loads(await response.get_data(as_text=False))["error"]["code"]


@pytest.mark.parametrize("path", GENERATING)
async def test_a_client_that_comes_back_loses_nothing(
    tokenizer: Tokenizer, path: str, autojump_clock: MockClock
) -> None:
    async with served(tokenizer, path) as server:
        async with server.stream({"model": MODEL} | BODIES[path], headers=RESUME) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            got = await read(stream, "One")
            assert stream.headers["x-stream-id"].startswith("stream_")
            stream_id = stream.headers["x-stream-id"]
            await stream.leave()
        assert server.engine.cancelled == []
        await trio.sleep(HOLD_SECONDS - 1)
        server.engine.emit(server.encode(" two"))
        server.engine.emit([], "stop")
        response = await rest(server, stream_id, got[-1][0])
        assert response.headers["x-stream-id"] == stream_id
        got += await events_of(response)
        assert [number for number, _ in got] == list(range(1, len(got) + 1))
        assert "One" in "".join(text for _, text in got)
        assert " two" in "".join(text for _, text in got)
        again = await rest(server, stream_id, headers={"Last-Event-ID": "0"})
        assert await events_of(again) == got
        assert await events_of(await rest(server, stream_id, got[-1][0])) == []
        assert server.fleet.num_active == 0


@pytest.mark.parametrize("path", GENERATING)
async def test_the_events_are_those_of_other_streams(
    tokenizer: Tokenizer, path: str, autojump_clock: MockClock
) -> None:
    """Without the header nothing changes."""
    async with served(tokenizer, path) as server:
        server.answers("Fine.")
        plain = await server.post({"model": MODEL, "stream": True} | BODIES[path])
        off = await server.post({"model": MODEL, "stream": True} | BODIES[path], {"X-Stream-Resume": "0"})
        whole = await server.post({"model": MODEL} | BODIES[path], RESUME)
        on = await server.post({"model": MODEL, "stream": True} | BODIES[path], RESUME)
        for each in (plain, off, whole):
            assert "x-stream-id" not in each.headers
            assert b"\nid: " not in b"\n" + await each.get_data(as_text=False)
        assert "x-stream-id" in on.headers
        events = [text for _, text in parsed(await on.get_data(as_text=False))]
        before = (await plain.get_data(as_text=True)).split("\n\n")[:-1]
        assert [_kind(text) for text in events] == [_kind(text) for text in before]


def _kind(event: str) -> list[str]:
    """Its name, and the keys of its data."""
    *names, data = event.split("\n")
    if data == "data: [DONE]":
        return [data]
    return names + sorted(orjson.loads(data.removeprefix("data: ")))


async def test_a_resumed_stream_is_live_and_may_break_again(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    async with served(tokenizer) as server:
        async with server.stream(chat(), headers=RESUME) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            got = await read(stream, "One")
            stream_id = stream.headers["x-stream-id"]
            await stream.leave()
        for word in ("two", "three"):
            await trio.sleep(HOLD_SECONDS - 1)
            connection = server.client.request(f"/v1/streams/{stream_id}?after={got[-1][0]}", method="GET")
            async with connection:
                await connection.send_complete()
                again = Stream(connection)  # type: ignore[arg-type]
                await wait_all_tasks_blocked()
                await trio.sleep(2 * HOLD_SECONDS)
                server.engine.emit(server.encode(f" {word}"))
                got += await read(again, word)
                await again.leave()
        assert server.engine.cancelled == []
        await trio.sleep(HOLD_SECONDS + 1)
        assert len(server.engine.cancelled) == 1
        assert [number for number, _ in got] == [1, 2, 3, 4]
        assert await code_of(await rest(server, stream_id)) == (404, "stream_not_found")


async def test_the_request_ends_with_its_generation(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """Not with its connection: its ticket and its record count until then, and once."""
    reports = Reports()
    async with served(tokenizer, observers=Observers(reports)) as server:
        async with server.stream(chat(user="ann"), headers=RESUME | {"x-request-id": "mine"}) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            got = await read(stream, "One")
            stream_id = stream.headers["x-stream-id"]
            await stream.leave()
        [record] = reports.open
        assert reports.ended_ == []
        assert await _remaining(server) == "3"
        await trio.sleep(3)
        tokens = server.encode(" two three")
        first = server.engine.submitted[0].request_id
        server.engine.emit(tokens, "stop", request_id=first)
        await wait_all_tasks_blocked()
        assert record in reports.ended_
        assert (record.request_id, record.status, record.finish) == ("mine", 200, "stop")
        assert record.answer_tokens == len(tokens) + len(server.encode("One"))
        assert record.ended == record.last_output
        assert await _remaining(server) == "4"
        await events_of(await rest(server, stream_id, got[-1][0]))
        assert [each.operation for each in reports.ended_].count("chat_completions") == 3
        assert len(set(map(id, reports.ended_))) == len(reports.ended_)
        read_again = next(each for each in reports.ended_ if each.operation == "resume_stream")
        assert (read_again.submitted, read_again.answer_tokens, read_again.finish) == (None, 0, "stop")


async def _remaining(server: Server) -> str:
    """How many of its four requests at once the tenant has left. Sends one, which ends at once."""

    def answer(submit: Submit) -> list[Output]:
        return [Output(submit.request_id, server.encode("Fine."), "stop")]

    server.engine.answer = answer
    response = await server.post(chat(user="ann"))
    server.engine.answer = None
    return str(response.headers["x-ratelimit-remaining-requests"])


async def test_the_events_are_kept_without_the_request(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """Its body may be large."""
    async with served(tokenizer) as server:
        server.answers("Fine.")
        user = "of the request that must not be kept"
        response = await server.post(chat(stream=True, user=user), RESUME)
        stream_id = response.headers["x-stream-id"]
        del response
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, ChatRequest) and each.user == user]
        assert await events_of(await rest(server, stream_id))


async def test_a_request_that_nobody_reads_is_reported_as_cancelled(
    tokenizer: Tokenizer, autojump_clock: MockClock
) -> None:
    reports = Reports()
    async with served(tokenizer, observers=Observers(reports)) as server:
        async with server.stream(chat(), headers=RESUME) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            await read(stream, "One")
            await stream.leave()
        begun = trio.current_time()
        await trio.sleep(HOLD_SECONDS + 1)
        assert (reports.only.finish, reports.only.status) == ("cancelled", 200)
        assert reports.only.ended == pytest.approx(begun + HOLD_SECONDS)
        assert server.fleet.num_active == 0


async def test_the_deadline_holds_without_a_client(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    async with served(tokenizer) as server:
        async with server.stream(chat(), headers=RESUME | {"X-Request-Timeout": "5"}) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            got = await read(stream, "One")
            stream_id = stream.headers["x-stream-id"]
            await stream.leave()
        await trio.sleep(6)
        assert server.fleet.num_active == 0
        [(number, last)] = await events_of(await rest(server, stream_id, got[-1][0]))
        assert number == 3
        assert "request_timeout" in last


async def test_the_end_of_the_grace_period_ends_it(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """As every stream. Its client gets the error, and the server waits until it has it."""
    async with served(tokenizer) as server:
        async with server.stream(chat(), headers=RESUME) as stream:
            await server.engine.wait_active()
            server.engine.emit(server.encode("One"))
            got = await read(stream, "One")
            stream_id = stream.headers["x-stream-id"]
            await stream.leave()
        server.fleet.drain()
        await wait_drained(server.fleet, server.streams, grace_seconds=3, delay_seconds=0)
        assert server.fleet.num_active == 1
        server.fleet.end("the server is shutting down")
        await wait_all_tasks_blocked()
        assert server.fleet.num_active == 0
        [(_, last)] = await events_of(await rest(server, stream_id, got[-1][0]))
        assert "the server is shutting down" in last
        with trio.fail_after(1):
            await server.streams.wait_read()


async def test_a_stream_that_is_left_for_good_does_not_hold_up_the_end(
    tokenizer: Tokenizer, autojump_clock: MockClock
) -> None:
    async with served(tokenizer) as server:
        async with server.stream(chat(), headers=RESUME) as stream:
            await server.engine.wait_active()
            await wait_all_tasks_blocked()
            await stream.leave()
        server.fleet.drain()
        begun = trio.current_time()
        await wait_drained(server.fleet, server.streams, grace_seconds=3 * HOLD_SECONDS, delay_seconds=0)
        assert trio.current_time() - begun == pytest.approx(HOLD_SECONDS)


async def test_beyond_the_bound_a_stream_cannot_be_resumed(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """The answer is served all the same, and says so."""
    async with served(tokenizer, max_streams=0) as server:
        server.answers("Fine.")
        response = await server.post(chat(stream=True), RESUME)
        data = await response.get_data(as_text=False)
        assert response.status_code == 200
        assert data.endswith(b"data: [DONE]\n\n")
        assert b"id: 1\n" not in data
        assert "x-stream-id" not in response.headers
        assert "cannot be resumed" in response.headers["cortex-warning"]
        tool = {"type": "web_search"}
        both = await server.post(chat(stream=True, tools=[tool]), RESUME)
        assert "web_search" in both.headers["cortex-warning"]
        assert "cannot be resumed" in both.headers["cortex-warning"]


async def test_only_its_tenant_finds_it(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path))
    with database() as connection:
        keys = [store.add(connection, name, store.Change()) for name in ("ann", "bob")]
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys)
    with closing(Directory()) as directory:
        await _only_ann_finds_it(Access(directory, demands_keys=True), tokenizer, ann, bob)


async def _only_ann_finds_it(access: Access, tokenizer: Tokenizer, ann: dict[str, str], bob: dict[str, str]) -> None:
    async with served(tokenizer, access=access) as server:
        server.answers("Fine.")
        response = await server.post(chat(stream=True), RESUME | ann)
        stream_id = response.headers["x-stream-id"]
        assert len(await events_of(await rest(server, stream_id, headers=ann))) > 2
        assert await code_of(await rest(server, stream_id, headers=bob)) == (404, "stream_not_found")
        assert (await rest(server, stream_id)).status_code == 401


@pytest.mark.parametrize("path", GENERATING)
async def test_other_values_of_the_header_are_refused(tokenizer: Tokenizer, path: str) -> None:
    async with served(tokenizer, path) as server:
        server.answers("Fine.")
        for value in ("", "yes", "2", "1, 1"):
            for stream in (False, True):
                response = await server.post(
                    {"model": MODEL, "stream": stream} | BODIES[path], {"X-Stream-Resume": value}
                )
                assert response.status_code == 400, value
                assert b"X-Stream-Resume" in await response.get_data(as_text=False)
        for value in ("true", "True", "1"):
            response = await server.post({"model": MODEL, "stream": True} | BODIES[path], {"X-Stream-Resume": value})
            assert "x-stream-id" in response.headers
        other = await server.client.get("/v1/models", headers={"X-Stream-Resume": "yes"})
        assert other.status_code == 200, "it streams nothing"


async def test_invalid_positions_are_refused(tokenizer: Tokenizer) -> None:
    async with served(tokenizer) as server:
        server.answers("Fine.")
        response = await server.post(chat(stream=True), RESUME)
        stream_id = response.headers["x-stream-id"]
        num_events = len(await events_of(await rest(server, stream_id)))
        for url in (
            f"/v1/streams/{stream_id}?after=-1",
            f"/v1/streams/{stream_id}?after=x",
            f"/v1/streams/{stream_id}?a=1",
        ):
            assert (await server.client.get(url)).status_code == 400
        for value in ("-1", "x", ""):
            refused = await rest(server, stream_id, headers={"Last-Event-ID": value})
            assert refused.status_code == 400
            assert b"Last-Event-ID" in await refused.get_data(as_text=False)
        assert (await server.client.get(f"/v1/streams/{stream_id}?Last-Event-ID=1")).status_code == 400
        assert (await rest(server, stream_id, num_events + 1)).status_code == 400
        both = await rest(server, stream_id, 0, headers={"Last-Event-ID": str(num_events - 1)})
        assert len(await events_of(both)) == 1, "the header is newer than the URL"
        assert await code_of(await rest(server, "stream_0")) == (404, "stream_not_found")


async def test_a_grammar_that_the_engine_refuses_is_refused_at_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tokenizer) as server:
        server.engine.answer = lambda submit: [Output(submit.request_id, [], "refused", error="too large")]
        response = await server.post(chat(stream=True, guided_regex="[a-z]+"), RESUME)
        assert response.status_code == 400
        assert server.streams.num_streams == 0


async def test_a_question_for_the_headers_reads_nothing(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    async with served(tokenizer) as server, server.stream(chat(), headers=RESUME) as stream:
        await server.engine.wait_active()
        await wait_all_tasks_blocked()
        stream_id = stream.headers["x-stream-id"]
        with trio.fail_after(5):
            response = await server.client.head(f"/v1/streams/{stream_id}")
        assert response.status_code == 200
        await stream.leave()
