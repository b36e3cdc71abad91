"""POST /v1/chat/completions over a fake engine: the bytes that clients receive, and the requests for the engine."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.engine.generation import UNREAD_LIMIT
from api.flags import ModelOptions
from api.http.body import MAX_BODY_BYTES
from api.protocols.answer import PING_SECONDS
from api.protocols.chat.conversation import as_conversation
from api.protocols.chat.request import UNSERVED, ChatRequest
from api.protocols.fields import MAX_CHOICES, MAX_TOOLS
from api.ranges import MAX_STOPS
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.messages import Output, Report, SamplingParams, Submit
from tests.api.fakes import INFO, MODEL, PATH, URL, Server, Stream, chat, events, leave

COMPLETIONS_URL = "/v1/completions"


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer)


async def body_of(response: Response) -> dict[str, Any]:
    body = orjson.loads(await response.get_data(as_text=False))
    assert isinstance(body, dict)
    return body


async def answer(server: Server, text: str = "Hello", /, **fields: Any) -> dict[str, Any]:
    """A non-streamed answer. Asserts that the status is 200."""
    response = await server.post(chat(text, **fields))
    assert response.status_code == 200, await response.get_data(as_text=True)
    return await body_of(response)


async def assert_error(
    response: Response, status: int, code: str | None, param: str | None = None, *parts: str
) -> dict[str, Any]:
    """Asserts that the body is exactly OpenAI's error object. Returns the error."""
    body = await body_of(response)
    assert response.status_code == status, body
    assert response.headers["Content-Type"] == "application/json"
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["type"] == ("server_error" if status >= 500 else error["type"])
    assert [part for part in parts if part not in error["message"]] == [], error["message"]
    return error


async def prompt_of(server: Server, messages: list[dict[str, str]]) -> list[int]:
    return await server.service.prompts.chat(
        as_conversation(ChatRequest.model_validate({"model": MODEL, "messages": messages}))
    )


def all_fields(kind: type[BaseModel], value: BaseModel, path: str = "") -> None:
    """Asserts that every field of OpenAI's type is present, and no other."""
    assert value.model_extra == {}, path
    missing = set(kind.model_fields) - value.model_fields_set
    allowed = {  # absent unless a request asks for them
        "ChatCompletion": {"metadata", "moderation"},
        "ChatCompletionChunk": {"moderation", "obfuscation"},
        "ChatCompletionMessage": {"audio", "function_call", "tool_calls"},
        "ChoiceDelta": set(kind.model_fields),
        "PromptTokensDetails": {"cache_write_tokens", "image_tokens", "text_tokens"},
        "CompletionTokensDetails": {"image_tokens", "text_tokens"},
    }
    assert missing <= allowed.get(kind.__name__, set()), (path, missing)
    for name in value.model_fields_set:
        inner = getattr(value, name)
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, BaseModel):
                all_fields(type(item), item, f"{path}.{name}")


# Non-streamed answers


async def test_an_answer_has_every_field_of_openais_type(server: Server) -> None:
    server.answers("Fine.")
    body = await answer(server)
    completion = ChatCompletion.model_validate(body, strict=True)
    all_fields(ChatCompletion, completion)
    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.system_fingerprint is not None
    assert completion.system_fingerprint.startswith("fp_")
    [choice] = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", "Fine.", None)
    assert choice.message.tool_calls is None


async def test_usage_counts_prompt_completion_and_cached_tokens(server: Server) -> None:
    tokens = server.encode("Fine.")
    server.engine.answer = lambda submit: [Output(submit.request_id, tokens, "stop", cached_tokens=24)]
    usage = (await answer(server))["usage"]
    num_prompt = len(server.engine.submitted[0].tokens)
    assert usage["prompt_tokens"] == num_prompt
    assert usage["completion_tokens"] == len(tokens)
    assert usage["total_tokens"] == num_prompt + len(tokens)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 24, "audio_tokens": 0}
    assert set(usage["completion_tokens_details"].values()) == {0}


async def test_outputs_of_many_steps_become_one_answer(server: Server) -> None:
    tokens = server.encode("One two three four.")

    def answer_in_steps(submit: Submit) -> list[Output]:
        first = Output(submit.request_id, tokens[:1], cached_tokens=7)
        others = [Output(submit.request_id, [token]) for token in tokens[1:]]
        return [first, *others, Output(submit.request_id, [], "length")]

    server.engine.answer = answer_in_steps
    body = await answer(server)
    assert body["choices"][0]["message"]["content"] == "One two three four."
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == len(tokens)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 7


async def test_the_end_token_counts_but_adds_no_text(server: Server) -> None:
    end = server.tokenizer.encode("<|im_end|>", parse_special=True)
    server.engine.answer = lambda submit: [Output(submit.request_id, [*server.encode("Fine."), *end], "stop")]
    body = await answer(server)
    assert body["choices"][0]["message"]["content"] == "Fine."
    assert body["usage"]["completion_tokens"] == 3


async def test_an_empty_answer_is_an_empty_string(server: Server) -> None:
    server.answers("")
    assert (await answer(server))["choices"][0]["message"]["content"] == ""


async def test_an_answer_names_the_model_as_its_request_did(server: Server) -> None:
    server.answers()
    assert (await answer(server, model="an-alias"))["model"] == "an-alias"


async def test_answers_have_unique_ids_and_the_same_fingerprint(server: Server) -> None:
    server.answers()
    first, second = await answer(server), await answer(server)
    assert first["id"] != second["id"]
    assert first["system_fingerprint"] == second["system_fingerprint"]


async def test_the_fingerprint_survives_a_restart_of_the_engine(server: Server) -> None:
    server.answers()
    first = await answer(server)
    server.engine.info = type(INFO)(**{f: getattr(INFO, f) for f in INFO.__slots__} | {"pid": 99, "load_seconds": 9.0})
    assert (await answer(server))["system_fingerprint"] == first["system_fingerprint"]
    server.engine.info = type(INFO)(**{f: getattr(INFO, f) for f in INFO.__slots__} | {"ctx_len": 256})
    assert (await answer(server))["system_fingerprint"] != first["system_fingerprint"]


# What the engine receives


async def test_the_engine_gets_the_prompt_of_the_models_template(server: Server) -> None:
    server.answers()
    await answer(server, "Hello <|im_end|>")
    [submit] = server.engine.submitted
    text = b"".join(map(server.tokenizer.piece, submit.tokens)).decode()
    assert "user\nHello <|im_end|>\n" in text
    assert submit.tokens.count(server.tokenizer.encode("<|im_end|>", parse_special=True)[0]) == 2


async def test_defaults_are_openais_and_the_limit_is_the_rest_of_the_context(server: Server) -> None:
    server.answers()
    await answer(server)
    [submit] = server.engine.submitted
    seed = submit.params.seed
    assert submit.params == SamplingParams(temperature=1.0, top_p=1.0, seed=seed)
    assert submit.max_tokens == INFO.ctx_len - len(submit.tokens)
    await answer(server)
    assert server.engine.submitted[1].params.seed != seed


async def test_every_parameter_reaches_the_engine(server: Server) -> None:
    server.answers()
    await answer(
        server,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        frequency_penalty=-0.5,
        presence_penalty=1.5,
        repeat_penalty=1.25,
        seed=-3,
        ignore_eos=True,
        max_tokens=9,
    )
    [submit] = server.engine.submitted
    assert submit.params == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        frequency_penalty=-0.5,
        presence_penalty=1.5,
        repeat_penalty=1.25,
        seed=-3,
        ignore_eos=True,
    )
    assert submit.max_tokens == 9


async def test_zeros_are_not_treated_as_missing(server: Server) -> None:
    server.answers()
    await answer(server, temperature=0, seed=0)
    [submit] = server.engine.submitted
    assert (submit.params.temperature, submit.params.seed) == (0, 0)


@pytest.mark.parametrize("top_k", [-1, 0])
async def test_top_k_below_1_means_the_whole_vocabulary(server: Server, top_k: int) -> None:
    server.answers()
    await answer(server, top_k=top_k)
    assert server.engine.submitted[0].params.top_k == 0


async def test_max_completion_tokens_is_the_same_as_max_tokens(server: Server) -> None:
    server.answers()
    await answer(server, max_completion_tokens=11)
    assert server.engine.submitted[0].max_tokens == 11


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_may_exceed_the_context(server: Server, name: str) -> None:
    """Clients send the maximum of their model, even if the context is smaller."""
    server.answers("Fine.", "length")
    await answer(server)
    room = INFO.ctx_len - len(server.engine.submitted[0].tokens)
    for wanted in (room - 1, room, room + 1, 32_000, 2**63 - 1):
        body = await answer(server, n=2, **{name: wanted})
        assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 2
        assert [submit.max_tokens for submit in server.engine.submitted[-2:]] == [min(wanted, room)] * 2


async def test_each_prompt_of_a_completion_has_the_room_that_the_context_leaves(server: Server) -> None:
    server.url = COMPLETIONS_URL
    server.answers("Fine.", "length")
    prompts = ["Hello", "Hello " * 100]
    lengths = [len(server.encode(prompt)) for prompt in prompts]
    for wanted in (32_000, INFO.ctx_len - lengths[1] + 1):
        for more in ({}, {"echo": True}, {"best_of": 3}):
            server.engine.posted.clear()
            response = await server.post({"model": MODEL, "prompt": prompts, "max_tokens": wanted} | more)
            assert response.status_code == 200, await response.get_data(as_text=True)
            assert {submit.max_tokens for submit in server.engine.submitted} == {
                min(wanted, INFO.ctx_len - length) for length in lengths
            }


async def test_a_prompt_that_fills_the_context_is_refused_among_others(server: Server) -> None:
    """Also with `max_tokens` 0, because the engine generates at least one token."""
    server.url = COMPLETIONS_URL
    server.answers()
    full = [server.encode("Hello")[0]] * INFO.ctx_len
    for more in ({}, {"max_tokens": 32_000}, {"max_tokens": 0, "echo": True}):
        response = await server.post({"model": MODEL, "prompt": [full[:1], full]} | more)
        await assert_error(
            response, 400, "context_length_exceeded", "prompt", f"resulted in {INFO.ctx_len} tokens", "no room"
        )
    assert server.engine.posted == []
    response = await server.post({"model": MODEL, "prompt": [full[1:]], "max_tokens": 32_000})
    assert response.status_code == 200
    assert [submit.max_tokens for submit in server.engine.submitted] == [1]


async def test_min_tokens_that_cannot_be_reached_are_refused_with_all_numbers(server: Server) -> None:
    server.answers()
    await answer(server)
    num_prompt = len(server.engine.submitted[0].tokens)
    room = INFO.ctx_len - num_prompt
    await answer(server, min_tokens=room, max_tokens=32_000)
    assert server.engine.submitted[-1].params.min_tokens == room
    refused = await server.post(chat(min_tokens=9, max_tokens=8))
    await assert_error(refused, 400, "invalid_value", "min_tokens", "is 9", "8 tokens")
    refused = await server.post(chat(min_tokens=room + 1))
    numbers = f"{INFO.ctx_len} tokens", f"{INFO.ctx_len + 1} tokens", f"{num_prompt} in the messages"
    await assert_error(refused, 400, "context_length_exceeded", "min_tokens", *numbers)
    server.url = COMPLETIONS_URL
    refused = await server.post({"model": MODEL, "prompt": "Hello", "min_tokens": 17})
    await assert_error(refused, 400, "invalid_value", "min_tokens", "16 tokens")


# Streams


async def test_a_stream_has_role_content_finish_reason_and_done(server: Server) -> None:
    tokens = server.encode("Hello world")
    async with server.stream(chat()) as stream:
        role = await stream.chunk()
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["Cache-Control"] == "no-cache"
        assert role["choices"] == [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": None,
            }
        ]
        server.engine.emit(tokens[:1])
        assert await stream.text() == "Hello"
        server.engine.emit(tokens[1:], "length")
        assert await stream.text() == " world"
        [end, done] = await stream.rest()
    assert end["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert done == "[DONE]"
    assert server.engine.num_active == 0


async def test_every_chunk_matches_openais_type(server: Server) -> None:
    server.answers("Hello world")
    async with server.stream(chat(stream_options={"include_usage": True})) as stream:
        *chunks, done = await stream.rest()
    assert done == "[DONE]"
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    for chunk in parsed:
        all_fields(ChatCompletionChunk, chunk)
        assert chunk.object == "chat.completion.chunk"
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in parsed}) == 1


async def test_usage_is_in_the_last_chunk_and_null_before(server: Server) -> None:
    server.answers("Hello world")
    async with server.stream(chat(stream_options={"include_usage": True})) as stream:
        *chunks, usage, done = await stream.rest()
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2
    assert usage["usage"]["prompt_tokens"] == len(server.engine.submitted[0].tokens)


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"include_obfuscation": False}]
)
async def test_usage_is_sent_only_on_request(server: Server, options: dict[str, Any] | None) -> None:
    server.answers("Hello world")
    async with server.stream(chat(stream_options=options)) as stream:
        *chunks, _ = await stream.rest()
    assert all("usage" not in chunk for chunk in chunks)


async def test_the_cached_tokens_of_the_first_output_are_in_the_usage(server: Server) -> None:
    async with server.stream(chat(stream_options={"include_usage": True})) as stream:
        await stream.chunk()
        server.engine.emit(server.encode("Hello"), cached_tokens=24)
        await stream.chunk()
        server.engine.emit(server.encode(" world"), "stop")
        [_, _, usage, _] = await stream.rest()
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 24


async def test_the_last_chunks_and_done_are_sent_in_one_write(server: Server) -> None:
    async with server.stream(chat(stream_options={"include_usage": True})) as stream:
        await stream.chunk()
        server.engine.emit([], "stop")
        data = await stream.write()
        assert data is not None
        assert len(events(data)) == 3
        assert await stream.write() is None


async def test_pending_tokens_are_sent_in_one_chunk(server: Server) -> None:
    tokens = server.encode("One two three four five")
    async with server.stream(chat()) as stream:
        await stream.chunk()
        for token in tokens[:4]:
            server.engine.emit([token])
        assert await stream.text() == "One two three four"
        server.engine.emit(tokens[4:], "stop")
        assert await stream.text() == " five"
        await stream.rest()


async def test_a_slow_reader_gets_larger_chunks_and_loses_nothing(server: Server) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 6
    tokens = server.encode(text)
    async with server.stream(chat(max_tokens=len(tokens))) as stream:
        await stream.chunk()
        for token in tokens:  # far more than the connection's buffer holds
            server.engine.emit([token])
            await wait_all_tasks_blocked()
        server.engine.emit([], "stop")
        *chunks, done = await stream.rest()
    assert done == "[DONE]"
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text
    assert len(pieces) < len(tokens) / 2


@pytest.mark.parametrize("text", ["🦜", "日本語の文", "na\u00efve \u2028 caf\u00e9", "👩\u200d👩\u200d👧 family"])
async def test_a_character_of_several_tokens_is_sent_whole(server: Server, text: str) -> None:
    pieces = []
    async with server.stream(chat()) as stream:
        await stream.chunk()
        for token in server.encode(text):
            server.engine.emit([token])
            await wait_all_tasks_blocked()
        server.engine.emit([], "stop")
        *chunks, _ = await stream.rest()
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


async def test_an_incomplete_character_waits_for_its_rest(server: Server) -> None:
    first, *others = server.encode("🦜")
    async with server.stream(chat()) as stream:
        await stream.chunk()
        server.engine.emit([*server.encode("A"), first])
        assert await stream.text() == "A"
        server.engine.emit(others[:1])
        await wait_all_tasks_blocked()
        server.engine.emit(others[1:])
        assert await stream.text() == "🦜"
        server.engine.emit([first], "length")
        assert await stream.text() == "\ufffd"  # the rest of the character never came
        await stream.rest()


async def test_concurrent_streams_get_only_their_own_tokens(server: Server) -> None:
    one, two = server.encode("Hello"), server.encode(" world")
    async with server.stream(chat("a")) as first, server.stream(chat("b")) as second:
        await first.chunk()
        await second.chunk()
        ids = [submit.request_id for submit in server.engine.submitted]
        server.engine.emit(one, request_id=ids[0])
        server.engine.emit(two, request_id=ids[1])
        assert (await first.text(), await second.text()) == ("Hello", " world")
        server.engine.emit([], "stop", request_id=ids[1])
        assert (await second.rest())[-1] == "[DONE]"
        server.engine.emit([], "length", request_id=ids[0])
        assert (await first.rest())[0]["choices"][0]["finish_reason"] == "length"


# Stop strings


def tokens_of(server: Server, *pieces: str) -> list[int]:
    """Encodes each piece separately."""
    return [token for piece in pieces for token in server.encode(piece)]


async def test_a_stop_string_ends_the_answer_and_the_request(server: Server) -> None:
    tokens = tokens_of(server, "Hello", " E", "N", "D", " tail", " more")
    server.engine.answer = lambda submit: [Output(submit.request_id, list(tokens))]
    body = await answer(server, stop="END")
    assert body["choices"][0]["message"]["content"] == "Hello "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 4  # tokens after the stop string do not count
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]
    assert server.engine.num_active == 0


async def test_no_part_of_a_stop_string_is_sent(server: Server) -> None:
    async with server.stream(chat(stop=["<END>", "unused"], stream_options={"include_usage": True})) as stream:
        await stream.chunk()
        for piece in ("Hello", "<", "E", "N"):
            server.engine.emit(tokens_of(server, piece))
            await wait_all_tasks_blocked()
        server.engine.emit(tokens_of(server, "D", ">", "tail"))
        assert await stream.text() == "Hello"
        [end, usage, done] = await stream.rest()
    assert end["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 6
    assert done == "[DONE]"
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]


async def test_text_that_only_begins_like_a_stop_string_is_sent_late_but_whole(server: Server) -> None:
    async with server.stream(chat(stop=["<END>"])) as stream:
        await stream.chunk()
        server.engine.emit(tokens_of(server, "a", "<", "E"))
        assert await stream.text() == "a"
        server.engine.emit(tokens_of(server, "X"))
        assert await stream.text() == "<EX"
        server.engine.emit(tokens_of(server, "<", "E"), "length")
        assert await stream.text() == "<E"
        await stream.rest()
    assert server.engine.cancelled == []


async def test_a_stop_string_in_the_last_tokens_finishes_with_stop(server: Server) -> None:
    server.answers("Hello END", "length")
    body = await answer(server, stop=[" END"])
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert server.engine.cancelled == []  # the request had already ended


# Clients that disconnect or stop reading


async def test_a_disconnect_during_a_stream_cancels_the_request(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        server.engine.emit(server.encode("Hello"))
        await stream.text()
        assert server.engine.num_active == 1
        await stream.leave()
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]
    assert server.engine.num_active == 0


async def test_a_disconnect_with_unread_chunks_cancels_the_request(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        for _ in range(50):
            server.engine.emit(server.encode("Hello"))
            await wait_all_tasks_blocked()
        await stream.leave()
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]


async def test_a_disconnect_before_a_non_streamed_answer_cancels_the_request(server: Server) -> None:
    connection = server.connect()
    async with connection:
        await connection.send(orjson.dumps(chat()))
        await connection.send_complete()
        await wait_all_tasks_blocked()
        assert server.engine.num_active == 1
        await leave(connection)
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]


async def test_a_disconnect_before_the_first_chunk_leaves_no_request(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.leave()
    assert server.engine.num_active == 0
    assert server.engine.cancelled == [submit.request_id for submit in server.engine.submitted]


@pytest.mark.parametrize("stuck_at", ["http.response.start", "http.response.body"])
async def test_a_disconnect_while_a_send_is_stuck_leaves_no_request(server: Server, stuck_at: str) -> None:
    """Before the first byte of the body, the generator has not started. After it, the generator waits at a yield."""
    connection = server.connect()
    to_app, from_client = trio.open_memory_channel[dict[str, Any]](10)
    to_app.send_nowait({"type": "http.request", "body": orjson.dumps(chat(stream=True)), "more_body": False})

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == stuck_at:
            await trio.sleep_forever()

    app: Callable[..., Awaitable[None]] = server.app
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, connection.scope, from_client.receive, send)
        await wait_all_tasks_blocked()
        assert server.engine.num_active == (1 if stuck_at == "http.response.body" else 0)
        to_app.send_nowait({"type": "http.disconnect"})
    assert server.engine.num_active == 0
    assert server.engine.cancelled == [submit.request_id for submit in server.engine.submitted]


async def test_outputs_after_the_end_of_a_request_are_ignored(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        await stream.leave()
    server.engine.emit(server.encode("late"))
    server.engine.emit([], "stop")
    assert server.engine.num_active == 0


async def feed_while_stalled(server: Server, stalled: Stream, reading: Stream) -> tuple[int, int]:
    """Sends both streams a token per second until the unread one is dropped. Returns their request ids."""
    await stalled.chunk()
    await reading.chunk()
    stalled_id, reading_id = (submit.request_id for submit in server.engine.submitted)
    token = server.encode("a")
    while not server.engine.cancelled:
        await trio.sleep(1)
        server.engine.emit(token, request_id=stalled_id)
        server.engine.emit(token, request_id=reading_id)
        assert await reading.text() == "a"
        assert trio.current_time() < 3 * UNREAD_LIMIT
    return stalled_id, reading_id


async def test_an_unread_stream_is_dropped_and_others_continue(server: Server, autojump_clock: MockClock) -> None:
    async with server.stream(chat("a")) as stalled, server.stream(chat("b")) as reading:
        stalled_id, reading_id = await feed_while_stalled(server, stalled, reading)
        assert UNREAD_LIMIT < trio.current_time() < UNREAD_LIMIT + 30  # the connection itself holds some chunks
        assert server.engine.cancelled == [stalled_id]
        server.engine.emit([], "stop", request_id=reading_id)
        assert (await reading.rest())[-1] == "[DONE]"
        await stalled.leave()
    assert server.engine.num_active == 0


async def test_a_dropped_stream_ends_with_an_error_for_a_reader_that_resumes(
    server: Server, autojump_clock: MockClock
) -> None:
    """Without the error, the reader would get pings for ever."""
    async with server.stream(chat("a")) as stalled, server.stream(chat("b")) as reading:
        _, reading_id = await feed_while_stalled(server, stalled, reading)
        with trio.fail_after(10 * PING_SECONDS):
            *chunks, error = await stalled.rest()
        assert error["error"]["type"] == "server_error"
        assert chunks
        server.engine.emit([], "stop", request_id=reading_id)
        await reading.rest()


async def test_a_slow_reader_is_not_dropped(server: Server, autojump_clock: MockClock) -> None:
    token = server.encode("a")
    num_read = 0
    async with server.stream(chat()) as stream:
        await stream.chunk()
        for second in range(int(4 * UNREAD_LIMIT)):
            await trio.sleep(1)
            server.engine.emit(token)
            if second % (UNREAD_LIMIT / 2) == 0:
                num_read += len(await stream.text())
        server.engine.emit([], "stop")
        *chunks, done = await stream.rest()
    assert done == "[DONE]"
    assert num_read + sum(len(chunk["choices"][0]["delta"].get("content", "")) for chunk in chunks) == second + 1
    assert server.engine.cancelled == []


async def test_an_answer_may_take_longer_than_quarts_timeout(server: Server, autojump_clock: MockClock) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        for _ in range(30):
            await trio.sleep(PING_SECONDS - 1)
            server.engine.emit(server.encode("a"))
            assert await stream.text() == "a"
        server.engine.emit([], "stop")
        assert (await stream.rest())[-1] == "[DONE]"


async def test_a_silent_stream_sends_pings(server: Server, autojump_clock: MockClock) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        started = trio.current_time()
        for number in range(1, 4):
            assert await stream.write() == b": ping\n\n"
            assert trio.current_time() - started == pytest.approx(number * PING_SECONDS)
        server.engine.emit(server.encode("Hello"), "stop")
        assert await stream.text() == "Hello"
        await stream.rest()


# Failures


async def test_an_engine_death_during_a_stream_ends_it_with_an_error(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        server.engine.emit(server.encode("Hello"))
        await stream.text()
        server.engine.die()
        [error] = await stream.rest()
    assert error["error"]["type"] == "server_error"
    assert error["error"]["code"] == "internal_error"
    assert "cannot be loaded again" in error["error"]["message"]
    assert server.engine.num_active == 0


async def test_an_engine_death_during_a_non_streamed_answer_is_a_500(server: Server) -> None:
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await assert_error(await server.post(chat()), 500, "internal_error", None, "cannot be loaded again")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        server.engine.emit(server.encode("Hello"))
        server.engine.die()
    assert server.engine.num_active == 0


async def test_a_complete_answer_survives_an_engine_death(server: Server) -> None:
    def answer_and_die(submit: Submit) -> list[Output]:
        server.engine.info = None
        return [Output(submit.request_id, server.encode("Fine."), "stop")]

    server.engine.answer = answer_and_die
    assert (await answer(server))["choices"][0]["message"]["content"] == "Fine."


async def test_a_complete_stream_survives_an_engine_death(server: Server) -> None:
    async with server.stream(chat()) as stream:
        await stream.chunk()
        server.engine.emit(server.encode("Fine."), "stop")
        server.engine.die()
        assert await stream.text() == "Fine."
        assert (await stream.rest())[-1] == "[DONE]"


async def test_a_request_that_fails_in_the_engine_is_a_500_with_its_reason(server: Server) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "error", error="the model failed")]
    await assert_error(await server.post(chat()), 500, "internal_error", None, "the model failed")
    async with server.stream(chat()) as stream:
        assert [event["error"]["message"] for event in (await stream.rest())[1:]] == ["the model failed"]


async def test_an_engine_death_before_the_first_chunk_is_an_error_in_the_stream(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        server.engine.info = None
        server.engine.ready_info()

    monkeypatch.setattr(server.engine, "start", lambda *_: gone())
    async with server.stream(chat()) as stream:
        [error] = await stream.rest()
    assert stream.status == 200
    assert error["error"]["code"] == "model_loading"
    assert server.engine.num_active == 0


async def test_a_bug_is_a_500_without_details_and_is_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.service, "room", broken)
    response = await server.post(chat(), {"x-request-id": "find-me"})
    error = await assert_error(response, 500, "internal_error")
    assert "secret" not in error["message"]
    assert response.headers["x-request-id"] == "find-me"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "find-me" in record.message
    assert record.exc_info is not None


# Request ids and CORS


async def responses_of_all_kinds(server: Server, headers: dict[str, str]) -> list[tuple[int | None, Any]]:
    """Status and headers of: an answer, a stream, and errors of each kind."""
    server.answers()
    responses = [
        await server.post(chat(), headers),
        await server.post(b"{", headers),
        await server.post(chat(model="other"), headers),
        await server.client.get("/nowhere", headers=headers),
        await server.client.get(URL, headers=headers),
        await server.client.get("/v1/models", headers=headers),
        await server.client.get("/healthz", headers=headers),
        await server.client.options(URL, headers=headers),
    ]
    found: list[tuple[int | None, Any]] = [(response.status_code, response.headers) for response in responses]
    async with server.stream(chat(), headers=headers) as stream:
        await stream.rest()
        found.append((stream.status, stream.headers))
    server.engine.info = None
    response = await server.post(chat(), headers)
    found.append((response.status_code, response.headers))
    server.engine.info = INFO
    assert [status for status, _ in found] == [200, 400, 404, 404, 405, 200, 200, 200, 200, 503]
    return found


async def test_a_request_id_is_echoed_on_every_response(server: Server) -> None:
    for status, headers in await responses_of_all_kinds(server, {"x-request-id": "my-id/1"}):
        assert headers.getlist("x-request-id") == ["my-id/1"], status


async def test_a_request_without_an_id_gets_a_generated_one(server: Server) -> None:
    ids = [headers["x-request-id"] for _, headers in await responses_of_all_kinds(server, {})]
    assert all(name.startswith("req_") and len(name) == 36 for name in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "caf\u00e9"])
async def test_an_invalid_request_id_is_replaced(server: Server, given: str) -> None:
    response = await server.client.get("/v1/models", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req_")


async def test_there_are_no_cors_headers_by_default(server: Server) -> None:
    for _, headers in await responses_of_all_kinds(server, {"Origin": "https://a.example"}):
        assert not [name for name, _ in headers if name.lower().startswith("access-control")]


async def test_pages_of_an_allowed_origin_may_read_every_response(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, cors_origins=("https://a.example", "https://b.example"))
    for status, headers in await responses_of_all_kinds(server, {"Origin": "https://b.example"}):
        assert headers["Access-Control-Allow-Origin"] == "https://b.example", status
        assert "x-request-id" in headers["Access-Control-Expose-Headers"].lower(), status
    for _, headers in await responses_of_all_kinds(server, {"Origin": "https://c.example"}):
        assert "Access-Control-Allow-Origin" not in headers


async def test_any_origin_may_be_allowed(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, cors_origins=("*",))
    for _, headers in await responses_of_all_kinds(server, {"Origin": "https://b.example"}):
        assert headers["Access-Control-Allow-Origin"] == "*"


async def test_a_preflight_allows_the_headers_of_the_sdk(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, cors_origins=("https://a.example",))
    response = await server.client.options(
        URL,
        headers={
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert allowed == "*" or {"authorization", "content-type", "x-stainless-lang"} <= set(allowed.split(", "))


# Refused requests

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOO_LONG = "Hello " * INFO.ctx_len

REFUSED: list[tuple[dict[str, Any], str, str | None, tuple[str, ...]]] = [
    # changes to a valid body, param, code, parts of the message
    ({"temprature": 1}, "temprature", "unknown_parameter", ("temprature",)),
    ({"": 1}, "", "unknown_parameter", ()),
    ({"model": None}, "model", "invalid_value", ()),
    ({"model": 3}, "model", "invalid_value", ("string",)),
    ({"chat_template_kwargs": {"x": 1, "tools": []}}, "chat_template_kwargs", "invalid_value", ("'tools'",)),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs", "invalid_value", ()),
    ({"messages": None}, "messages", "invalid_value", ("list",)),
    ({"messages": []}, "messages", "invalid_value", ("at least 1",)),
    ({"messages": {}}, "messages", "invalid_value", ()),
    ({"messages": "Hello"}, "messages", "invalid_value", ()),
    ({"messages": [None]}, "messages[0]", "invalid_value", ()),
    ({"messages": [USER, "Hello"]}, "messages[1]", "invalid_value", ()),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", ()),
    ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value", ("'developer'",)),
    ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role", "invalid_value", ()),
    ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value", ("needs content",)),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "invalid_value", ("needs content",)),
    ({"messages": [{"role": "tool", "content": None}]}, "messages[0]", "invalid_value", ("needs content",)),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value", ()),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages[0].content", "invalid_value", ()),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", "invalid_value", ("object",)),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content", "invalid_value", ()),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "invalid_value", ()),
    (
        {"messages": [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[1].content",
        "invalid_value",
        ("image_url", "only 'text'"),
    ),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f"}}]}]},
        "messages[1].tool_calls[0].id",
        "invalid_value",
        ("string",),
    ),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]}]},
        "messages[1].tool_calls[0].function.name",
        "missing_required_parameter",
        (),
    ),
    (
        {"messages": [{"role": "assistant", "reasoning_details": [{"text": 3}]}]},
        "messages[0]",
        "invalid_value",
        ("reasoning must have a string 'text'",),
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 3}, {"type": "reasoning"}]}]},
        "messages[0]",
        "invalid_value",
        ("reasoning must have a string 'thinking'",),
    ),
    ({"messages": [USER | {"name": 3}]}, "messages[0].name", "invalid_value", ()),
    (
        {"messages": [USER | {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]},
        "messages[0]",
        "invalid_value",
        ("cannot have tool calls",),
    ),
    ({"stream": "true"}, "stream", "invalid_value", ("boolean",)),
    ({"stream": 1}, "stream", "invalid_value", ()),
    ({"stream_options": {"include_usage": True}}, "stream_options", None, ("'stream'",)),
    ({"stream": False, "stream_options": {}}, "stream_options", None, ("'stream'",)),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter", ()),
    ({"stream": True, "stream_options": True}, "stream_options", "invalid_value", ()),
    ({"temperature": "0.5"}, "temperature", "invalid_value", ("number",)),
    ({"temperature": True}, "temperature", "invalid_value", ()),
    ({"temperature": -0.1}, "temperature", "invalid_value", ("greater than or equal to 0",)),
    ({"temperature": 2.01}, "temperature", "invalid_value", ("less than or equal to 2",)),
    ({"top_p": -0.1}, "top_p", "invalid_value", ("greater than or equal to 0",)),
    ({"top_p": 1.1}, "top_p", "invalid_value", ()),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "invalid_value", ()),
    ({"presence_penalty": -2.1}, "presence_penalty", "invalid_value", ()),
    ({"top_k": -2}, "top_k", "invalid_value", ()),
    ({"top_k": 1.5}, "top_k", "invalid_value", ()),
    ({"min_p": 1.1}, "min_p", "invalid_value", ()),
    ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value", ()),
    ({"repeat_penalty": 1e-300}, "repeat_penalty", "invalid_value", ()),  # its inverse exceeds the range of floats
    ({"repeat_penalty": 10.5}, "repeat_penalty", "invalid_value", ()),
    ({"ignore_eos": "yes"}, "ignore_eos", "invalid_value", ()),
    ({"seed": 1.0}, "seed", "invalid_value", ()),
    ({"seed": 2**63}, "seed", "invalid_value", ()),
    ({"user": 5}, "user", "invalid_value", ()),
    ({"max_tokens": True}, "max_tokens", "invalid_value", ("integer",)),
    ({"max_tokens": "10"}, "max_tokens", "invalid_value", ("integer",)),
    ({"max_tokens": 0}, "max_tokens", "invalid_value", ()),
    ({"max_tokens": -2}, "max_tokens", "invalid_value", ()),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value", ()),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", None, ("both",)),
    ({"stop": [""]}, "stop[0]", "invalid_value", ("at least 1",)),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value", ("at least 1",)),
    ({"stop": ["x"] * (MAX_STOPS + 1)}, "stop", "invalid_value", (str(MAX_STOPS),)),
    ({"stop": 5}, "stop", "invalid_value", ()),
    ({"stop": [5]}, "stop[0]", "invalid_value", ()),
    ({"n": 0}, "n", "invalid_value", ()),
    ({"n": MAX_CHOICES + 1}, "n", "invalid_value", (str(MAX_CHOICES),)),
    ({"n": True}, "n", "invalid_value", ()),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter", ()),
    ({"tools": [TOOL, TOOL]}, "tools", "invalid_value", ("same name",)),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].custom", "missing_required_parameter", ()),
    ({"tools": [{"type": "plugin", "name": "x"}]}, "tools[0]", "invalid_value", ("'function'", "'custom'")),
    ({"tools": [{"type": "function", "function": {"name": "no way"}}]}, "tools[0].function.name", "invalid_value", ()),
    ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools", "invalid_value", (str(MAX_TOOLS),)),
    ({"tool_choice": "required"}, "tool_choice", None, ("'tools'",)),
    ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice", "invalid_value", ("'required'",)),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice",
        "invalid_value",
        ("'other'",),
    ),
    ({"functions": [{}]}, "functions", "unsupported_parameter", ()),
    ({"logprobs": 0}, "logprobs", "invalid_value", ("boolean",)),
    ({"top_logprobs": 2}, "top_logprobs", None, ("'logprobs'",)),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", ("20",)),
    ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value", ()),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value", ("100",)),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value", ("vocabulary",)),
    ({"response_format": "text"}, "response_format", "invalid_value", ()),
    ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value", ("json_schema",)),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter", ()),
    ({"json_schema": {}, "guided_regex": "a"}, "guided_regex", "invalid_value", ("'json_schema'",)),
    ({"guided_json": "{"}, "guided_json", "invalid_value", ("not JSON",)),
    ({"guided_choice": []}, "guided_choice", "invalid_value", ()),
    ({"grammar": "root ::= ("}, "grammar", "invalid_grammar", ("GBNF",)),
    ({"dry_allowed_length": 0}, "dry_allowed_length", "invalid_value", ()),
    ({"mirostat": 3}, "mirostat", "invalid_value", ()),
    ({"metadata": {"a": 1}}, "metadata", "invalid_value", ()),
    ({"service_tier": "gold"}, "service_tier", "invalid_value", ()),
    ({"verbosity": "low"}, "verbosity", "unsupported_parameter", ()),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value", ()),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", ()),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter", ()),
    ({"prediction": "text"}, "prediction", "invalid_value", ()),
    ({"prediction": {"content": "text"}}, "prediction.type", "missing_required_parameter", ()),
    ({"prediction": {"type": "content"}}, "prediction.content", "missing_required_parameter", ()),
    ({"prediction": {"type": "text", "content": "a"}}, "prediction.type", "invalid_value", ()),
    ({"prediction": {"type": "content", "content": 5}}, "prediction.content", "invalid_value", ("string",)),
    ({"prediction": {"type": "content", "content": []}}, "prediction.content", "invalid_value", ()),
    (
        {"prediction": {"type": "content", "content": [{"type": "image_url", "text": "a"}]}},
        "prediction.content[0].type",
        "invalid_value",
        ("'text'",),
    ),
    ({"prediction": {"type": "content", "content": "a", "size": 1}}, "prediction.size", "unknown_parameter", ()),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", ()),
]


@pytest.mark.parametrize(("changes", "param", "code", "parts"), REFUSED, ids=lambda value: str(value)[:60])
async def test_an_invalid_field_is_refused_by_name(
    server: Server, changes: dict[str, Any], param: str, code: str | None, parts: tuple[str, ...]
) -> None:
    server.answers()
    error = await assert_error(await server.post(chat(**changes)), 400, code, param, *parts)
    assert error["type"] == "invalid_request_error"
    assert "function-" not in error["message"]
    assert server.engine.posted == []


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_a_missing_field_is_named(server: Server, missing: str) -> None:
    body = chat()
    del body[missing]
    await assert_error(await server.post(body), 400, "missing_required_parameter", missing, missing)


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": }', b"\xff", b'{"model": "\\ud800"}', b'{"seed": NaN}'])
async def test_a_body_that_is_not_json_is_refused(server: Server, body: bytes) -> None:
    await assert_error(await server.post(body), 400, None, None, "not valid JSON")


async def test_a_body_that_is_nested_too_deeply_is_refused(server: Server) -> None:
    schema = b'{"items":' * 1000 + b"{}" + b"}" * 1000
    tool = b'{"type": "function", "function": {"name": "f", "parameters": %b}}' % schema
    body = orjson.dumps(chat())[:-1] + b', "tools": [%b]}' % tool
    await assert_error(await server.post(body), 400, "invalid_value", None, "nested too deeply")


@pytest.mark.parametrize("body", [[], [1], "text", 3, True, None])
async def test_a_body_that_is_not_an_object_is_refused(server: Server, body: Any) -> None:
    await assert_error(await server.post(orjson.dumps(body)), 400, None, None, "JSON object")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_to_an_unknown_model_is_a_404(server: Server, stream: bool) -> None:
    response = await server.post(chat(model="gpt-9", stream=stream))
    await assert_error(response, 404, "model_not_found", "model", "gpt-9", MODEL)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server: Server, stream: bool) -> None:
    response = await server.post(chat(TOO_LONG, stream=stream))
    num_prompt = len(await prompt_of(server, [{"role": "user", "content": TOO_LONG}]))
    assert num_prompt > INFO.ctx_len
    await assert_error(
        response, 400, "context_length_exceeded", "messages", f"{INFO.ctx_len} tokens", f"{num_prompt} tokens"
    )
    assert server.engine.posted == []


async def test_an_error_of_the_template_is_a_400(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.text.template import ChatTemplate

    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", server.tokenizer)
    monkeypatch.setattr(server.service.prompts, "_template", template)
    await assert_error(await server.post(chat()), 400, "invalid_messages", "messages", "roles must alternate")
    await assert_error(await server.post(chat("long " * 5000)), 400, "invalid_messages", "messages")


async def test_an_unknown_url_is_a_404(server: Server) -> None:
    response = await server.client.get("/v1/nothing")
    await assert_error(response, 404, "unknown_url", None, "GET /v1/nothing")


async def test_a_redirect_names_neither_scheme_nor_host(server: Server) -> None:
    response = await server.client.get("/v1//models?x=1", headers={"Host": "llm.example.com"})
    assert (response.status_code, response.headers["Location"]) == (308, "/v1/models?x=1")
    assert await response.get_data() == b""


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", URL, {"POST", "OPTIONS"}),
        ("PUT", URL, {"POST", "OPTIONS"}),
        ("DELETE", f"/v1/models/{MODEL}", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_wrong_method_is_a_405_that_lists_the_allowed_ones(
    server: Server, method: str, path: str, allowed: set[str]
) -> None:
    response = await server.client.open(path, method=method, json=None)
    await assert_error(response, 405, "method_not_allowed", None, method, path)
    assert set(response.headers["Allow"].replace(" ", "").split(",")) == allowed


async def test_a_content_length_above_the_limit_is_a_413(server: Server) -> None:
    response = await server.post_raw(b"{}", {"Content-Length": str(MAX_BODY_BYTES + 1)})
    await assert_error(response, 413, "request_too_large", None, str(MAX_BODY_BYTES))


async def test_a_body_of_unknown_length_that_exceeds_the_limit_is_a_413(server: Server) -> None:
    server.app.config["MAX_CONTENT_LENGTH"] = 1000
    connection = server.connect()
    async with connection:
        for _ in range(3):
            await connection.send(b" " * 600)
        response = await connection.as_response()
    await assert_error(response, 413, "request_too_large")


async def test_a_full_queue_is_a_429_until_a_request_ends(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, max_waiting=1)
    async with trio.open_nursery() as nursery:
        streams: list[Stream] = []
        leave = trio.Event()

        async def occupy() -> None:
            async with server.stream(chat()) as stream:
                await stream.chunk()
                streams.append(stream)
                await leave.wait()
                await stream.leave()

        for _ in range(INFO.max_seqs + 1):
            nursery.start_soon(occupy)
        await wait_all_tasks_blocked()
        assert server.engine.num_active == INFO.max_seqs + 1
        for stream in (False, True):
            response = await server.post(chat(stream=stream))
            error = await assert_error(response, 429, "rate_limit_exceeded", None, f"{INFO.max_seqs} run", "1 wait")
            assert error["type"] == "requests"
            assert int(response.headers["Retry-After"]) >= 1
        server.engine.emit([], "stop", request_id=server.engine.submitted[0].request_id)
        server.answers()
        await answer(server)
        leave.set()


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_get_a_503_while_the_model_loads(server: Server, stream: bool) -> None:
    server.engine.info = None
    response = await server.post(chat(stream=stream))
    await assert_error(response, 503, "model_loading")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_get_a_503_while_the_server_drains(server: Server, stream: bool) -> None:
    server.fleet.drain()
    response = await server.post(chat(stream=stream))
    await assert_error(response, 503, "shutting_down")
    assert int(response.headers["Retry-After"]) >= 1


# Accepted requests

ACCEPTED: list[dict[str, Any]] = [
    {"n": 1},
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False},
    {"functions": []},
    {"function_call": "none"},
    {"logprobs": False},
    {"top_logprobs": 0},
    {"logit_bias": {}},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"metadata": {}},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"store": False},
    {"verbosity": "medium"},
    {"stream": False},
    {"user": "someone", "safety_identifier": "s", "prompt_cache_key": "k"},
    {"temperature": 0},
    {"temperature": 2},
    {"temperature": 2.0, "top_p": 1, "frequency_penalty": -2, "presence_penalty": 2},
    {"min_p": 0, "top_k": 0, "repeat_penalty": 1},
    {"chat_template_kwargs": {"add_generation_prompt": True, "messages": None, "documents": [], "x": 1}},
    {"repeat_penalty": 0.01},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"stop": "x"},
    {"stop": ["x"] * MAX_STOPS},
    {"stop": []},
    {"max_tokens": 1},
    {"max_tokens": None, "max_completion_tokens": 5},
    {"stream": None, "stream_options": None},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "user", "content": []}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    {"messages": [USER, {"role": "assistant", "content": None}, USER]},
    {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]},
    {"messages": [USER, {"role": "assistant"}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "x", "tool_calls": [], "audio": None}, USER]},
    {"messages": [USER | {"name": "Ann"}]},
    {"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": "42"}]},
    {"messages": [{"role": "assistant", "content": "Only this."}]},
]
ACCEPTED += [{name: None} for name in (*ChatRequest.model_fields, *UNSERVED) if name not in ("model", "messages")]


@pytest.mark.parametrize("changes", ACCEPTED, ids=lambda value: str(value)[:60])
async def test_a_valid_field_is_accepted(server: Server, changes: dict[str, Any]) -> None:
    server.answers("Fine.")
    body = await answer(server, **changes)
    assert body["choices"][0]["message"]["content"] == "Fine."


async def prompt_text(server: Server, messages: list[dict[str, Any]]) -> str:
    server.answers()
    await answer(server, messages=messages)
    return b"".join(map(server.tokenizer.piece, server.engine.submitted[-1].tokens)).decode()


async def test_text_parts_are_joined_as_lines(server: Server) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo" in await prompt_text(server, [{"role": "user", "content": parts}])


async def test_a_refusal_becomes_the_text_of_the_assistant(server: Server) -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "I would rather not."}
    assert "assistant\nI would rather not." in await prompt_text(server, [USER, refusal, USER])


async def test_a_developer_message_becomes_a_system_message_if_the_template_needs_it(server: Server) -> None:
    developer = await prompt_text(server, [{"role": "developer", "content": "Be brief."}, USER])
    assert developer == await prompt_text(server, [{"role": "system", "content": "Be brief."}, USER])
    assert "Be brief." in developer


async def test_a_long_prompt_is_tokenized_in_a_thread_with_the_same_result(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "One two three. " * 30}]
    inline = await prompt_of(server, messages)
    monkeypatch.setattr("api.serving.prompts.INLINE_CHARACTERS", 10)
    assert await prompt_of(server, messages) == inline


# Models and health


async def test_the_models_are_the_served_one_and_its_aliases(server: Server) -> None:
    response = await server.client.get("/v1/models")
    body = await body_of(response)
    assert response.status_code == 200
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == [MODEL, "an-alias"]
    for model in body["data"]:
        assert set(model) == {
            *("id", "object", "created", "owned_by", "status"),
            *("context_length", "max_model_len", "chat_template", "answer_syntax"),
        }
        assert model["context_length"] == model["max_model_len"] == INFO.ctx_len
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert await body_of(await server.client.get(f"/v1/models/{model['id']}")) == model


async def test_a_model_whose_name_has_slashes_is_found(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.fleet.adopt(ModelOptions("owner/repo:file.gguf", PATH, EngineConfig(str(PATH))), server.service)
    response = await server.client.get("/v1/models/owner/repo:file.gguf")
    assert (await body_of(response))["id"] == "owner/repo:file.gguf"


async def test_an_unknown_model_is_a_404(server: Server) -> None:
    response = await server.client.get("/v1/models/gpt-9")
    await assert_error(response, 404, "model_not_found", "model", "gpt-9")


async def test_models_are_listed_while_they_load(server: Server) -> None:
    server.engine.info = None
    response = await server.client.get("/v1/models")
    assert response.status_code == 200
    for model in (await body_of(response))["data"]:
        assert model["context_length"] is model["max_model_len"] is None


async def test_health_has_the_present_size_of_memory_that_follows_the_load(server: Server) -> None:
    cache = {"page_tokens": 32, "held_pages": 3, "cached_pages": 10, "free_pages": 51}
    memory = {"kv_tokens": 8192, "kv_max": 262_144, "kv_bytes": 1 << 26, "grows": 2, "shrinks": 1, "move_seconds": 0.02}
    server.engine.report = Report({"running": 2, "waiting": 5}, cache, memory=memory)
    [model] = (await body_of(await server.client.get("/healthz")))["models"]
    kv = {"tokens": 8192, "max_tokens": 262_144, "bytes": 1 << 26, "grows": 2, "shrinks": 1, "move_seconds": 0.02}
    assert {name: model["kv"][name] for name in kv} == kv


async def test_health_contains_the_report_of_the_engine(server: Server) -> None:
    cache = {"page_tokens": 32, "held_pages": 3, "cached_pages": 10, "free_pages": 51}
    server.engine.report = Report({"running": 2, "waiting": 5}, cache)
    response = await server.client.get("/healthz")
    body = await body_of(response)
    assert response.status_code == 200
    assert body["status"] == "ok"
    [model] = body["models"]
    assert (model["model"], model["aliases"], model["path"]) == (
        MODEL,
        ["an-alias"],
        None,
    )  # remote clients get no path
    assert (model["engine_pid"], model["context_length"]) == (INFO.pid, INFO.ctx_len)
    assert (model["running"], model["waiting"]) == (2, 5)
    assert model["kv"] == {
        "tokens": INFO.kv_tokens,
        "max_tokens": INFO.kv_tokens,
        "bytes": INFO.kv_bytes,
        "grows": 0,
        "shrinks": 0,
        "move_seconds": 0.0,
        "layout": "pool",
        "tier": "none",
        "held_tokens": 96,
        "cached_tokens": 320,
        "free_tokens": 51 * 32,
    }
    assert model["statistics"] == {"scheduler": {"running": 2, "waiting": 5}, "cache": cache}
    assert model["statistics_age"] == 0.0


async def test_health_is_ok_without_kv_numbers_if_the_engine_does_not_answer(server: Server) -> None:
    response = await server.client.get("/healthz")
    body = await body_of(response)
    assert (response.status_code, body["status"], body["models"][0]["kv"]) == (200, "ok", None)


@pytest.mark.parametrize("draining", [False, True])
async def test_health_is_a_503_while_no_requests_are_accepted(server: Server, draining: bool) -> None:
    if draining:
        server.fleet.drain()
    server.engine.info = None
    response = await server.client.get("/healthz")
    body = await body_of(response)
    assert response.status_code == 503
    assert body["status"] == ("draining" if draining else "loading")
    assert body["models"][0]["engine_pid"] is None


# Generated requests

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**65)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "user", "auto", "<|im_end|>", MODEL, "image_url", "custom", "web_search"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "include_usage", "tool_calls"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ChatRequest.model_fields, *UNSERVED]) | st.text(max_size=6)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": VALUES},
        optional={"name": VALUES, "tool_call_id": VALUES, "refusal": VALUES, "tool_calls": VALUES, "audio": VALUES},
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def answering(tokenizer: Tokenizer) -> Callable[[], Server]:
    """Returns the same server for all examples. The first example makes it, because it belongs to an event loop."""
    servers: list[Server] = []

    def get() -> Server:
        if not servers:
            servers.append(Server(tokenizer, max_waiting=1000))
            servers[0].answers("Fine.")
        return servers[0]

    return get


async def assert_answer_or_refusal(server: Server, body: bytes) -> None:
    response = await server.post_raw(body)
    data = bytes(await response.get_data(as_text=False))
    if response.status_code == 200 and response.headers["Content-Type"].startswith("text/event-stream"):
        assert events(data)[-1] == "[DONE]"
    elif response.status_code == 200:
        ChatCompletion.model_validate_json(data)
    else:
        assert 400 <= response.status_code < 500, data
        error = orjson.loads(data)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["param"] is None or isinstance(error["param"], str)
        assert error["type"] == "invalid_request_error"
    assert server.engine.num_active == 0


@settings(max_examples=300)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=3))
@example(fields={"logprobs": True})
async def test_any_value_in_any_field_is_answered_or_refused(
    answering: Callable[[], Server], fields: dict[str, Any]
) -> None:
    import json

    await assert_answer_or_refusal(answering(), json.dumps(chat(**fields)).encode())


@given(messages=MESSAGES, stream=st.booleans())
async def test_any_conversation_is_answered_or_refused(
    answering: Callable[[], Server], messages: list[dict[str, Any]], stream: bool
) -> None:
    import json

    await assert_answer_or_refusal(answering(), json.dumps(chat(messages=messages, stream=stream)).encode())


@given(body=st.binary(max_size=40))
async def test_any_bytes_are_refused(answering: Callable[[], Server], body: bytes) -> None:
    response = await answering().post_raw(body)
    assert response.status_code == 400
