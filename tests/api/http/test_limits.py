"""Limits over HTTP: what counts, for how long, and what a refused client gets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import anthropic
import openai
import orjson
import pytest
import trio
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.serving.limits import HEADERS, Limiter
from api.tenants.tenant import Limits
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embedded, Output
from tests.api.fakes import INFO, MODEL, Server, chat, leave
from tests.api.sdks import Sdks

USER: Final = {"role": "user", "content": "Hello"}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [USER], "max_tokens": 3},
    "/v1/embeddings": {"input": "Hello"},
}
STREAMS: Final = [(path, stream) for path in BODIES for stream in (False, True) if "embed" not in path or not stream]


def served(tokenizer: Tokenizer, total: Limits = Limits(), default: Limits = Limits(), **options: Any) -> Server:  # noqa: B008
    server = Server(tokenizer, limiter=Limiter(total=total, default=default), **options)
    server.engine.info = replace(INFO, pooling="mean", embedding_size=1, max_text_tokens=16)
    return server


def answers(server: Server) -> None:
    server.answers("Fine.")
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, ["AAAAAA=="] * len(embed.texts))]


async def ask(server: Server, path: str = "/v1/chat/completions", **fields: Any) -> Response:
    server.url = path
    response = await server.post({"model": MODEL} | BODIES[path] | fields)
    await response.get_data(as_text=False)
    return response


@asynccontextmanager
async def held(server: Server, path: str = "/v1/chat/completions", **fields: Any) -> AsyncIterator[None]:
    """A request that the engine has and does not answer. Its client leaves at the end of the block."""
    server.url = path
    connection = server.connect()
    async with connection:
        await connection.send(orjson.dumps({"model": MODEL} | BODIES[path] | fields))
        await connection.send_complete()
        await wait_all_tasks_blocked()
        yield
        await leave(connection)


async def assert_refused(response: Response, kind: str = "requests") -> None:
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, kind, "rate_limit_exceeded"), error
    assert 1 <= int(response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(("path", "stream"), STREAMS)
async def test_every_answer_has_the_headers(
    tokenizer: Tokenizer, path: str, stream: bool, mock_clock: MockClock
) -> None:
    """Time stands still, because a thread looks for the unknown model."""
    server = served(tokenizer, default=Limits(requests_per_minute=2, tokens_per_minute=1000))
    answers(server)
    fields = {"stream": True} if stream else {}
    first = await ask(server, path, **fields)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert 900 < int(first.headers["x-ratelimit-remaining-tokens"]) < 1000
    invalid = await ask(server, path, model="unknown", **fields)
    assert (invalid.status_code, invalid.headers["x-ratelimit-remaining-requests"]) == (404, "0")
    refused = await ask(server, path, **fields)
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
    assert refused.headers["retry-after"] == "30"
    error = orjson.loads(await refused.get_data(as_text=False))["error"]
    assert error["type"] == ("rate_limit_error" if path == "/v1/messages" else "requests")


async def test_without_limits_there_are_no_headers(tokenizer: Tokenizer) -> None:
    server = served(tokenizer)
    answers(server)
    response = await ask(server)
    assert not set(HEADERS) & {name.lower() for name, _ in response.headers.items()}


async def test_pages_of_other_origins_can_read_the_headers(tokenizer: Tokenizer) -> None:
    server = served(tokenizer, default=Limits(concurrent=1), cors_origins=("https://a.example",))
    answers(server)
    response = await server.post(chat(), headers={"Origin": "https://a.example"})
    exposed = {name.strip() for name in response.headers["access-control-expose-headers"].lower().split(",")}
    assert {*HEADERS, "retry-after", "x-request-id"} <= exposed


@pytest.mark.parametrize(
    ("path", "fields", "num"),
    [
        ("/v1/chat/completions", {"n": 3}, 3),
        ("/v1/completions", {"n": 3}, 3),
        ("/v1/completions", {"best_of": 3}, 3),
        ("/v1/completions", {"prompt": ["a", "b", "c"]}, 3),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        ("/v1/responses", {}, 1),
        ("/v1/messages", {}, 1),
        ("/v1/embeddings", {"input": ["a", "b", "c"]}, 1),
    ],
)
async def test_each_sequence_counts(tokenizer: Tokenizer, path: str, fields: dict[str, Any], num: int) -> None:
    server = served(tokenizer, default=Limits(concurrent=num))
    async with held(server, path, **fields):
        assert server.engine.num_active == num
        await assert_refused(await ask(server))
        answers(server)
        assert (await ask(server, user="another")).status_code == 200
    assert (await ask(server, path, **fields)).status_code == 200
    if num > 1:
        invalid = await ask(served(tokenizer, Limits(concurrent=num - 1)), path, **fields)
        error = orjson.loads(await invalid.get_data(as_text=False))["error"]
        assert (invalid.status_code, error["param"] in fields) == (400, True)


async def test_a_sequence_waits_until_its_first_output(tokenizer: Tokenizer) -> None:
    server = served(tokenizer, default=Limits(waiting=1))
    async with held(server, stream=True):
        await assert_refused(await ask(server))
        server.engine.emit([])  # its grammar is accepted
        await assert_refused(await ask(server))
        server.engine.emit(server.encode("One"))
        answers(server)
        assert (await ask(server)).status_code == 200


async def test_tokens_of_prompts_and_answers_count(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = served(tokenizer, default=Limits(tokens_per_minute=60))
    tokens = server.encode("One two three four five")
    server.engine.answer = lambda submit: [Output(submit.request_id, list(tokens), "length")]
    first = await ask(server, "/v1/completions", prompt=[1, 2, 3], n=2)
    used = 3 + 2 * len(tokens)
    assert first.headers["x-ratelimit-remaining-tokens"] == str(60 - used), "a prompt counts once"
    await assert_refused(await ask(server, "/v1/completions", prompt=[1] * (61 - used)), "tokens")
    assert len(server.engine.submitted) == 2
    await trio.sleep(used)
    assert (await ask(server, "/v1/completions", prompt=[1] * 60)).status_code == 200, "the answer is not refused"
    refused = await ask(server, "/v1/embeddings")
    await assert_refused(refused, "tokens")
    assert int(refused.headers["retry-after"]) >= len(tokens)
    never = await ask(server, "/v1/completions", prompt=[1] * 61)
    assert never.status_code == 429, "the bucket is empty anyway"
    await trio.sleep(120)
    assert (await ask(server, "/v1/completions", prompt=[1] * 61)).status_code == 400


async def test_a_server_over_its_own_limits_is_not_ready(tokenizer: Tokenizer) -> None:
    server = served(tokenizer, Limits(concurrent=2), Limits(concurrent=1))
    async with held(server, user="ada"):
        assert (await server.client.get("/readyz")).status_code == 200, "the limit of one tenant is no reason"
        async with held(server, user="bob"):
            response = await server.client.get("/readyz")
            assert (response.status_code, (await response.get_json())["reason"]) == (503, "queue_full")
    assert (await server.client.get("/readyz")).status_code == 200


ENDS: Final = ("served", "failed", "engine dies", "client leaves", "leaves before submission", "refused", "invalid")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("path", "stream"), STREAMS)
async def test_every_place_is_given_back(tokenizer: Tokenizer, path: str, stream: bool, end: str) -> None:
    """With room for two, each of three requests finds room, so each has given its places back."""
    server = served(tokenizer, default=Limits(waiting=2, concurrent=2, tokens_per_minute=10**6), max_waiting=0)
    fields: dict[str, Any] = {"stream": True} if stream else {}
    for _ in range(3):
        match end:
            case "served":
                answers(server)
                assert (await ask(server, path, **fields)).status_code == 200
            case "failed":
                server.engine.answer = lambda submit: [Output(submit.request_id, [], "error", error="broken")]
                server.engine.embedded = lambda embed: [Embedded(embed.request_id, error="broken")]
                assert (await ask(server, path, **fields)).status_code == (200 if stream else 500)
            case "engine dies":
                async with held(server, path, **fields):
                    server.engine.fail_all("the engine died")
            case "client leaves":
                async with held(server, path, **fields):
                    assert server.engine.num_active == 1
            case "leaves before submission":
                forever = trio.Event()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(server.fleet, "service", lambda _name, forever=forever: forever.wait())
                    async with held(server, path, **fields):
                        assert server.engine.num_active == 0
            case "refused":
                assert (await ask(server, path, model="unknown", **fields)).status_code == 404
            case "invalid":
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(server.service.admission, "enter", _broken)
                    assert (await ask(server, path, **fields)).status_code == 500
    answers(server)
    server.url = "/v1/chat/completions"
    response = await ask(server, n=2)
    assert response.status_code == 200
    assert response.headers["x-ratelimit-remaining-requests"] == "2"


def _broken(*_args: object) -> None:
    raise RuntimeError("a fault in the server")


async def test_many_requests_at_once_are_served_or_refused(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = served(tokenizer, Limits(concurrent=6), Limits(concurrent=2, waiting=2))
    statuses: list[int] = []

    async def one(number: int) -> None:
        statuses.append((await server.post(chat(user=f"user {number % 10}"))).status_code)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
        await wait_all_tasks_blocked()
        assert statuses == [429] * 194
        for submit in server.engine.submitted:
            server.engine.emit(server.encode("Fine."), "stop", request_id=submit.request_id)
    assert sorted(statuses) == [200] * 6 + [429] * 194
    assert server.fleet.num_active == 0


async def test_sdks_raise_their_errors(tokenizer: Tokenizer) -> None:
    """A 429 has what they need to try again."""
    server = served(tokenizer, default=Limits(requests_per_minute=1))
    answers(server)
    assert (await ask(server)).status_code == 200
    sdks = Sdks(server)
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.RateLimitError) as refused:
        await sdks.call(sdks.openai.chat.completions.create, model=MODEL, messages=messages)
    assert (refused.value.type, refused.value.code) == ("requests", "rate_limit_exceeded")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.RateLimitError) as refused_too:
        await sdks.call(sdks.anthropic.messages.create, model=MODEL, messages=messages, max_tokens=9)
    assert refused_too.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_sdks_do_not_try_again_after_the_deadline(tokenizer: Tokenizer) -> None:
    """They usually do after a 504."""
    server = served(tokenizer, request_timeout=0.01)
    sdks = Sdks(server)
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.InternalServerError):
        await sdks.call(sdks.openai.with_options(max_retries=3).chat.completions.create, model=MODEL, messages=messages)
    with pytest.raises(anthropic.APIStatusError) as late:
        await sdks.call(
            sdks.anthropic.with_options(max_retries=3).messages.create, model=MODEL, messages=messages, max_tokens=9
        )
    assert (late.value.status_code, len(sdks.transport.bodies)) == (504, 2)
