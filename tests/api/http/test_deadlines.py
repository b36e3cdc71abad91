"""The deadline of a request: what it covers, what it frees, and what the client gets. All in virtual time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
import trio
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.engine.deadline import Deadline
from api.engine.generation import UNREAD_LIMIT
from api.errors import ApiError
from api.protocols.answer import PING_SECONDS
from api.serving import service
from api.serving.limits import Limiter
from api.tenants.tenant import Limits
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embedded, Submit
from tests.api.fakes import INFO, MODEL, Server, chat

USER: Final = {"role": "user", "content": "Hello"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [USER], "max_tokens": 3},
    "/v1/embeddings": {"input": "Hello"},
}
GENERATING: Final = [path for path in BODIES if path != "/v1/embeddings"]
FIVE: Final = {"X-Request-Timeout": "5"}


def served(tokenizer: Tokenizer, **options: Any) -> Server:
    server = Server(tokenizer, limiter=Limiter(default=Limits(concurrent=4)), max_waiting=0, **options)
    server.engine.info = replace(INFO, pooling="mean", embedding_size=1, max_text_tokens=16)
    return server


async def ask(server: Server, path: str, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    server.url = path
    response = await server.post({"model": MODEL} | BODIES[path] | fields, headers)
    await response.get_data(as_text=False)
    return response


async def error_of(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(await response.get_data(as_text=False))["error"]
    return found


async def assert_free(server: Server) -> None:
    """All places of the engine and of the tenant are free."""
    assert server.fleet.num_active == 0
    server.answers("Fine.")
    response = await ask(server, "/v1/chat/completions", n=4)
    assert (response.status_code, response.headers["x-ratelimit-remaining-requests"]) == (200, "4")


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_is_too_late_is_an_error(
    tokenizer: Tokenizer, path: str, autojump_clock: MockClock
) -> None:
    server = served(tokenizer)
    begun = trio.current_time()
    response = await ask(server, path, FIVE)
    assert trio.current_time() - begun == pytest.approx(5)
    error = await error_of(response)
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
    assert "within 5 seconds" in error["message"]
    if path == "/v1/messages":
        assert error["type"] == "timeout_error"
    else:
        assert (error["type"], error["code"]) == ("server_error", "request_timeout")
    assert len(server.engine.cancelled) == 1
    await assert_free(server)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("seconds", [5.0, 2 * PING_SECONDS + 5])
async def test_a_stream_that_is_too_late_ends_with_an_error(
    tokenizer: Tokenizer, path: str, seconds: float, autojump_clock: MockClock
) -> None:
    server = served(tokenizer, url=path)
    begun = trio.current_time()
    async with server.stream({"model": MODEL} | BODIES[path], headers={"X-Request-Timeout": f"{seconds:g}"}) as stream:
        await server.engine.wait_active()
        server.engine.emit(server.encode("One"))
        *_, last = [event for event in await stream.rest() if event is not None]
    assert trio.current_time() - begun == pytest.approx(seconds)
    assert stream.status == 200
    match path:
        case "/v1/responses":
            assert last["type"] == "response.failed"
            error = last["response"]["error"]
        case "/v1/messages":
            assert last["type"] == "error"
            error = last["error"]
            assert error["type"] == "timeout_error"
        case _:
            error = last["error"]
            assert error["code"] == "request_timeout"
    assert f"within {seconds:g} seconds" in error["message"]
    await assert_free(server)


async def test_an_answer_that_is_in_time_is_whole(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = served(tokenizer, url="/v1/chat/completions")
    async with server.stream(chat(), headers=FIVE) as stream:
        await server.engine.wait_active()
        for text in ("One", " two"):
            await trio.sleep(2)
            server.engine.emit(server.encode(text))
        server.engine.emit([], "stop")
        assert (await stream.rest())[-1] == "[DONE]"
    await assert_free(server)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_servers_default(tokenizer: Tokenizer, stream: bool, autojump_clock: MockClock) -> None:
    """A request can ask for less or for more."""
    server = served(tokenizer, request_timeout=8.0)
    for headers, seconds in (({}, 8), (FIVE, 5), ({"X-Request-Timeout": "9.5"}, 9.5)):
        begun = trio.current_time()
        response = await ask(server, "/v1/chat/completions", headers, stream=stream)
        assert trio.current_time() - begun == pytest.approx(seconds)
        data = await response.get_data(as_text=False)
        assert f"within {seconds:g} seconds".encode() in data
    await assert_free(server)


@pytest.mark.parametrize("path", BODIES)
async def test_an_invalid_header_is_refused(tokenizer: Tokenizer, path: str) -> None:
    server = served(tokenizer)
    for value in ("0", "0.0", "-1", "", "soon", "inf", "nan", "1e3", "5s", "1,5"):
        response = await ask(server, path, {"X-Request-Timeout": value})
        error = await error_of(response)
        assert response.status_code == 400, value
        assert "X-Request-Timeout" in error["message"]
        assert error.get("code", "invalid_value") == "invalid_value"


# What the time covers


async def forever(*_args: object, **_options: object) -> Any:
    await trio.sleep_forever()


async def made_at_once(make: Callable[[], str]) -> str:
    """Virtual time does not wait for threads."""
    return make()


def hold_loading(server: Server, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server.fleet, "service", forever)


def hold_prompts(server: Server, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server.service.prompts, "build", forever)


def hold_nothing(server: Server, patch: pytest.MonkeyPatch) -> None:
    """The engine has the request, and compiles its grammar or lets it wait."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold", [hold_loading, hold_prompts, hold_nothing])
async def test_everything_before_the_first_token_counts(
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
    hold: Callable[[Server, pytest.MonkeyPatch], None],
    autojump_clock: MockClock,
) -> None:
    """A stream whose grammar the engine has not accepted has not begun, so it gets the status."""
    server = served(tokenizer)
    monkeypatch.setattr(service, "in_thread", made_at_once)
    with monkeypatch.context() as patch:
        hold(server, patch)
        response = await ask(server, "/v1/chat/completions", FIVE, stream=stream, guided_regex="[a-z]+", n=3)
    assert response.status_code == 504
    assert len(server.engine.cancelled) == (3 if hold is hold_nothing else 0)
    await assert_free(server)


async def test_the_time_begins_before_the_body_has_arrived(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = served(tokenizer, url="/v1/chat/completions")
    begun = trio.current_time()
    async with server.connect(FIVE) as connection:
        await connection.send(orjson.dumps(chat())[:10])
        await wait_all_tasks_blocked()
        await trio.sleep(4)
        await connection.send(orjson.dumps(chat())[10:])
        await connection.send_complete()
        await server.engine.wait_active()
        response = await connection.as_response()
    assert response.status_code == 504
    assert trio.current_time() - begun == pytest.approx(5)


async def test_a_grammar_that_takes_long_to_make_is_not_waited_for(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made in a thread, so the time is real."""
    import threading

    server, go = served(tokenizer), threading.Event()
    monkeypatch.setattr(server.service, "_chat_grammar", lambda *_: (go.wait(), "")[1])
    try:
        response = await ask(server, "/v1/chat/completions", {"X-Request-Timeout": "0.05"}, guided_regex="[a-z]+")
        assert response.status_code == 504
        assert server.fleet.num_active == 0
    finally:
        go.set()


async def test_sequences_end_although_nobody_reads_the_stream(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """The stream cannot end while its client does not read, so the next output of the engine ends the sequence."""
    server = served(tokenizer)
    generation = server.engine.generate([Submit(server.engine.next_id(), [1], 100)])
    generation.deadline = Deadline(trio.current_time() + 5, 5)
    with generation:
        server.engine.emit([1])
        await trio.sleep(4)
        server.engine.emit([2])
        assert server.engine.num_active == 1
        await trio.sleep(2)
        server.engine.emit([3])
        assert UNREAD_LIMIT > 6
        assert server.engine.num_active == 0
        with pytest.raises(ApiError) as late:
            await generation.receive()
        assert late.value.status == 504


async def test_other_operations_have_no_deadline(tokenizer: Tokenizer) -> None:
    server = served(tokenizer, url="/tokenize")
    response = await server.post({"content": "Hello"}, {"X-Request-Timeout": "soon"})
    assert response.status_code == 200


async def test_embeddings_in_time(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = served(tokenizer)
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, ["AAAAAA=="])]
    assert (await ask(server, "/v1/embeddings", FIVE)).status_code == 200
