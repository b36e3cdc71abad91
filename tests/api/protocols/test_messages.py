"""POST /v1/messages and /v1/messages/count_tokens over a fake engine: each field, each event, each error."""

import json
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anthropic.types as sdk
import orjson
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from anthropic.types.shared import ErrorResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import from_json
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.http.body import MAX_BODY_BYTES
from api.models.defaults import ModelDefaults
from api.protocols.answer import PING_SECONDS
from api.protocols.messages import request as schemas
from api.protocols.messages.types import MessageAnswer, MessageError, MessageEvent
from api.protocols.tools import arguments_object
from api.ranges import MAX_STOPS
from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, SamplingParams
from tests import dialects
from tests.api.fakes import INFO, MODEL, Server, Stream
from tests.api.fakes import URL as CHAT_URL

URL = "/v1/messages"
COUNT_URL = f"{URL}/count_tokens"
Body = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Body = {"name": "weather", "description": "Of a city.", "input_schema": SCHEMA}
CLOCK: Body = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SECOND_CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
THINKS_AT_ONCE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is not false %}<think>\n{% endif %}"
)


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer, url=URL)


@pytest.fixture
def thinker(server: Server) -> Server:
    """A server whose model may think before it answers."""
    server.service.prompts.dialect = dialects.hermes(thinks=True)
    return server


def asked(text: str = "Hello", /, **fields: Any) -> Body:
    """The body of a request."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}]} | fields


def turns(*contents: Any) -> list[Body]:
    """Messages that alternate between user and assistant, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


async def body_of(response: Response) -> Body:
    body = orjson.loads(await response.get_data(as_text=False))
    assert isinstance(body, dict)
    return body


async def answer(server: Server, text: str = "Hello", /, **fields: Any) -> Body:
    """A non-streamed answer. Asserts that the status is 200."""
    response = await server.post(asked(text, **fields))
    body = await body_of(response)
    assert response.status_code == 200, body
    return body


async def assert_error(response: Response, status: int, kind: str, *parts: str) -> str:
    """Asserts that the body is exactly Anthropic's error object. Returns the message."""
    body = await body_of(response)
    assert response.status_code == status, body
    assert response.headers["Content-Type"] == "application/json"
    assert set(body) == {"type", "error", "request_id"}
    if kind != "request_too_large":  # the SDK recognises it by its status only
        ErrorResponse.model_validate(body)
    MessageError.model_validate(body)
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert (body["type"], body["error"]["type"]) == ("error", kind), body
    message = str(body["error"]["message"])
    assert [part for part in parts if part not in message] == [], message
    return message


def named_events(data: bytes) -> list[Body]:
    """Parses the events of a stream. Asserts that the name of each is its type."""
    assert data.endswith(b"\n\n"), "only whole events are written"
    found = []
    for event in data[:-2].split(b"\n\n"):
        name, line = event.split(b"\n")
        content = orjson.loads(line.removeprefix(b"data: "))
        assert name == f"event: {content['type']}".encode()
        found.append(content)
    return found


async def events_of(stream: Stream) -> list[Body]:
    """All events up to the end of the body."""
    data = b""
    while (more := await stream.write()) is not None:
        data += more
    return named_events(data)


@asynccontextmanager
async def streamed_by_token(server: Server, text: str, end: str, **fields: Any) -> AsyncIterator[Stream]:
    """A stream that receives the tokens of a text one by one."""
    async with server.stream(asked(**fields)) as stream:
        await server.engine.wait_active()
        for token in server.encode(text):
            server.engine.emit([token])
            await wait_all_tasks_blocked()
        server.engine.emit([], end)
        yield stream


def put_together(events: list[Body]) -> Body:
    """Assembles the message of a stream as a client does. Asserts that the events are in order."""
    start, *middle, delta, stop = events
    assert (start["type"], delta["type"], stop) == ("message_start", "message_delta", {"type": "message_stop"})
    message: Body = start["message"]
    assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
    is_open, arguments = False, ""
    for event in middle:
        MessageEvent.model_validate(event)
        blocks = message["content"]
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                is_open, arguments = True, ""
            case "content_block_delta":
                assert (is_open, event["index"]) == (True, len(blocks) - 1)
                match event["delta"]:
                    case {"type": "text_delta", "text": text}:
                        blocks[-1]["text"] += text
                    case {"type": "thinking_delta", "thinking": text}:
                        blocks[-1]["thinking"] += text
                    case {"type": "signature_delta", "signature": text}:
                        blocks[-1]["signature"] = text
                    case {"type": "input_json_delta", "partial_json": text}:
                        arguments += text
            case _:
                assert (event["type"], is_open, event["index"]) == ("content_block_stop", True, len(blocks) - 1)
                is_open = False
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = from_json(arguments, allow_partial=True)  # as the SDK does
    assert not is_open
    message |= delta["delta"] | {"usage": delta["usage"]}
    return message


# Non-streamed answers


async def test_an_answer_matches_anthropics_type(server: Server) -> None:
    tokens = server.encode("Fine.")
    server.engine.answer = lambda submit: [Output(submit.request_id, tokens, "stop", cached_tokens=24)]
    body = await answer(server)
    sdk.Message.model_validate(body, strict=True)
    MessageAnswer.model_validate(body)
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Fine.", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(server.engine.submitted[0].tokens) - 24,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 24,
            "output_tokens": len(tokens),
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }


async def test_messages_have_unique_ids_and_name_the_model_as_the_request_did(server: Server) -> None:
    server.answers()
    first, second = await answer(server, model="an-alias"), await answer(server)
    assert first["id"] != second["id"]
    assert (first["model"], second["model"]) == ("an-alias", MODEL)


async def test_an_empty_answer_has_no_blocks(server: Server) -> None:
    server.answers("")
    body = await answer(server)
    assert (body["content"], body["stop_reason"]) == ([], "end_turn")


async def test_thinking_text_and_calls_become_blocks_in_order(thinker: Server) -> None:
    thinker.answers(f"<think>\nHm.\n</think>\n\nI look.{CALL}\n{SECOND_CALL}")
    body = await answer(thinker, tools=[WEATHER, CLOCK])
    sdk.Message.model_validate(body, strict=True)
    MessageAnswer.model_validate(body)
    thought, text, first, second = body["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": body["id"]}
    assert text == {"type": "text", "text": "I look.", "citations": None}
    assert first.pop("id").startswith("toolu_")
    assert second.pop("id").startswith("toolu_")
    assert first == {"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}
    assert second == {"type": "tool_use", "name": "clock", "input": {}}
    assert body["stop_reason"] == "tool_use"
    assert 0 < body["usage"]["output_tokens_details"]["thinking_tokens"] < body["usage"]["output_tokens"]


async def test_omitted_thinking_leaves_an_empty_block(thinker: Server) -> None:
    thinker.answers("<think>Hm.</think>Yes.")
    fields = {"thinking": {"type": "adaptive", "display": "omitted"}}
    body = await answer(thinker, **fields)
    async with thinker.stream(asked(**fields)) as stream:
        events = await events_of(stream)
    assert [block.get("thinking") for block in body["content"]] == ["", None]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["signature_delta", "text_delta"]


# Stop reasons


async def reason(server: Server, **fields: Any) -> tuple[str, str | None]:
    """The stop reason and stop sequence. Asserts that they are the same in a stream."""
    body = await answer(server, **fields)
    async with server.stream(asked(**fields)) as stream:
        streamed = put_together(await events_of(stream))
    assert (streamed["stop_reason"], streamed["stop_sequence"]) == (body["stop_reason"], body["stop_sequence"])
    return body["stop_reason"], body["stop_sequence"]


async def test_each_end_has_its_stop_reason(server: Server) -> None:
    server.answers("One two.")
    assert await reason(server) == ("end_turn", None)
    assert await reason(server, stop_sequences=["no", " two", "."]) == ("stop_sequence", " two")
    server.answers("One two.", "length")
    assert await reason(server) == ("max_tokens", None)
    assert await reason(server, stop_sequences=["."]) == ("stop_sequence", ".")
    server.answers(CALL)
    assert await reason(server, tools=[WEATHER]) == ("tool_use", None)
    assert await reason(server, tools=[WEATHER], stop_sequences=["Ro"]) == ("stop_sequence", "Ro")
    server.answers(CALL, "length")
    assert await reason(server, tools=[WEATHER]) == ("max_tokens", None)


async def test_of_stop_sequences_with_the_same_end_the_longest_is_reported(server: Server) -> None:
    server.answers("One two three.")
    body = await answer(server, stop_sequences=["o", "wo", " two"])
    assert (body["stop_sequence"], body["content"][0]["text"]) == (" two", "One")


async def test_max_tokens_overrides_the_default_of_the_model(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=URL, defaults=ModelDefaults(max_tokens=5))
    server.answers("One", "length")
    assert await reason(server, max_tokens=100) == ("max_tokens", None)
    assert server.engine.submitted[-1].max_tokens == 100


async def test_max_tokens_may_exceed_the_context(server: Server) -> None:
    server.answers("One", "length")
    assert await reason(server, max_tokens=10**6) == ("model_context_window_exceeded", None)
    [submit, _] = server.engine.submitted
    room = INFO.ctx_len - len(submit.tokens)
    assert submit.max_tokens == room
    assert await reason(server, max_tokens=room) == ("max_tokens", None)


async def test_max_tokens_0_returns_no_content(server: Server) -> None:
    """The prompt is computed, so it is cached for later requests."""
    server.answers("One", "stop")
    body = await answer(server, max_tokens=0)
    async with server.stream(asked(max_tokens=0)) as stream:
        streamed = put_together(await events_of(stream))
    for message in (body, streamed):
        assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
        assert message["usage"]["output_tokens"] == 0
        assert message["usage"]["input_tokens"] == len(server.engine.submitted[0].tokens)
    assert server.engine.submitted[0].max_tokens == 1


# Truncated calls


async def test_a_truncated_call_has_its_complete_arguments(server: Server) -> None:
    server.answers(
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": [1, 2], "note": "unfin', "length"
    )
    body = await answer(server, tools=[WEATHER])
    [call] = body["content"]
    assert (call["name"], call["input"]) == ("weather", {"city": "Rome", "days": [1, 2]})
    assert body["stop_reason"] == "max_tokens"


inputs = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(value=inputs, cut=st.integers(0, 200))
def test_truncated_arguments_become_an_object(value: Body, cut: int) -> None:

    text = json.dumps(value, ensure_ascii=False)
    found = arguments_object(text[:cut])
    assert isinstance(found, dict)
    orjson.dumps(found)
    assert set(found) <= set(value)
    if cut >= len(text):
        assert set(found) == set(value)
        assert found == orjson.loads(text)


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": NaN}', '{"a" 1}', '{"a": "\\ud800"}', "{", "5"])
def test_invalid_arguments_become_an_object_that_can_be_sent(text: str) -> None:
    assert set(arguments_object(text)) <= {"a"}
    orjson.dumps(arguments_object(text))


# Streams


async def test_a_stream_sends_its_events_in_order(server: Server) -> None:
    async with server.stream(asked()) as stream:
        data = await stream.write()
        assert data is not None
        [start] = named_events(data)
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        num_prompt = len(server.engine.submitted[0].tokens)
        usage = {
            "input_tokens": num_prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
            "output_tokens_details": {"thinking_tokens": 0},
        }
        message_id = start["message"]["id"]
        assert start == {
            "type": "message_start",
            "message": {
                "id": message_id,
                "type": "message",
                "role": "assistant",
                "model": MODEL,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage,
            },
        }
        hello, world = server.encode("Hello world")
        server.engine.emit([hello], cached_tokens=24)
        data = await stream.write()
        assert data is not None
        assert named_events(data) == [
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": "", "citations": None},
            },
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        ]
        server.engine.emit([world], "stop")
        assert await events_of(stream) == [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " world"}},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": usage | {"input_tokens": num_prompt - 24, "cache_read_input_tokens": 24, "output_tokens": 2},
            },
            {"type": "message_stop"},
        ]
    assert server.engine.num_active == 0


async def test_thinking_text_and_calls_are_streamed_block_by_block(thinker: Server) -> None:
    text = f"<think>Hm.</think>I look.{CALL}\n{SECOND_CALL}"
    async with streamed_by_token(thinker, text, "stop", tools=[WEATHER, CLOCK]) as stream:
        events = await events_of(stream)
    order: list[Any] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                order.append((event["index"], event["content_block"]["type"]))
            case "content_block_delta" if order[-1] != (event["index"], event["delta"]["type"]):
                order.append((event["index"], event["delta"]["type"]))
            case "content_block_stop":
                order.append((event["index"], "stop"))
    assert order == [
        *[(0, "thinking"), (0, "thinking_delta"), (0, "signature_delta"), (0, "stop")],
        *[(1, "text"), (1, "text_delta"), (1, "stop")],
        *[(2, "tool_use"), (2, "input_json_delta"), (2, "stop")],
        *[(3, "tool_use"), (3, "input_json_delta"), (3, "stop")],
    ]
    [signature] = [e["delta"]["signature"] for e in events if e.get("delta", {}).get("type") == "signature_delta"]
    assert signature == events[0]["message"]["id"]
    for event in events:
        MessageEvent.model_validate(event)
    calls = [event["content_block"] for event in events if event.get("content_block", {}).get("type") == "tool_use"]
    assert [(call["name"], call["input"]) for call in calls] == [("weather", {}), ("clock", {})]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Fine.",
        "<think>Hm.</think>",
        "<think>Hm.</think>\nFine. 🦜",
        CALL,
        f"I look.\n{CALL}\n{SECOND_CALL}",
        f"<think>\nHm.\n</think>\n\n{CALL}\nDone.\n",
        "<tool_call>no call</tool_call>",
    ],
)
async def test_a_stream_adds_up_to_the_non_streamed_answer(thinker: Server, text: str) -> None:
    fields = {"tools": [WEATHER, CLOCK]}
    async with streamed_by_token(thinker, text, "stop", **fields) as stream:
        streamed = put_together(await events_of(stream))
    thinker.answers(text)
    whole = await answer(thinker, **fields)
    for message in (streamed, whole):
        message_id = message.pop("id")
        for block in message["content"]:
            assert block.get("signature", message_id) == message_id
            block.pop("signature", None)
            block.pop("id", None)
    assert streamed == whole


async def test_a_silent_stream_sends_pings(server: Server, autojump_clock: MockClock) -> None:
    async with server.stream(asked()) as stream:
        await stream.write()
        data = await stream.write()
        assert data == b'event: ping\ndata: {"type":"ping"}\n\n'
        assert autojump_clock.current_time() >= PING_SECONDS
        server.engine.emit([], "stop")
        assert [event["type"] for event in await events_of(stream)] == ["message_delta", "message_stop"]


async def test_a_failure_during_a_stream_is_an_event(server: Server) -> None:
    async with server.stream(asked(), headers={"x-request-id": "find-me"}) as stream:
        await stream.write()
        server.engine.emit(server.encode("Hello"))
        await stream.write()
        server.engine.die()
        [event] = await events_of(stream)
    assert event == {
        "type": "error",
        "error": {
            "type": "api_error",
            "message": "the model cannot be loaded again: it is broken",
            "details": None,
        },
        "request_id": "find-me",
    }
    MessageError.model_validate(event)


async def test_a_failure_before_the_answer_is_a_500(server: Server) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "error", error="the model failed")]
    await assert_error(await server.post(asked()), 500, "api_error", "the model failed")


async def test_a_disconnect_cancels_the_request(server: Server) -> None:
    async with server.stream(asked()) as stream:
        await stream.write()
        await stream.leave()
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]
    assert server.engine.num_active == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "any"}}, "tools"),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "output_config.format"),
        ({"output_format": {"type": "json_schema", "schema": SCHEMA}}, "output_format"),
    ],
)
async def test_an_unsupported_grammar_is_refused_with_the_name_of_its_field(
    server: Server, stream: bool, fields: Body, param: str
) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "refused", error="too large")]
    response = await server.post(asked(stream=stream, **fields))
    message = await assert_error(response, 400, "invalid_request_error")
    assert message == f"{param}: The grammar is not supported: too large"


# What the engine receives: the same as for the equivalent chat request


def function(tool: Body) -> Body:
    return {
        "type": "function",
        "function": {"name": tool["name"], "parameters": tool["input_schema"]}
        | ({"description": tool["description"]} if "description" in tool else {}),
    }


def call(call_id: str, name: str, arguments: str) -> Body:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def said(role: str, content: str | None, **more: Any) -> Body:
    return {"role": role, "content": content, **more}


FUNCTIONS = [function(WEATHER), function(CLOCK)]
USE: Body = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "days": [1, 2.5]}}
CALLED = call("toolu_1", "weather", '{"city": "Rome", "days": [1, 2.5]}')
RESULT: Body = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}
EQUIVALENTS: list[tuple[Body, Body]] = [
    ({}, {}),
    ({"system": ""}, {}),
    ({"system": "Be brief."}, {"messages": [said("system", "Be brief."), said("user", "Hello")]}),
    (
        {
            "system": [
                {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "Be kind."},
            ]
        },
        {"messages": [said("system", "Be brief.\nBe kind."), said("user", "Hello")]},
    ),
    (
        {"messages": [*turns("One"), {"role": "system", "content": "Now be brief."}, *turns("Two")]},
        {"messages": [said("user", "One"), said("system", "Now be brief."), said("user", "Two")]},
    ),
    (
        {"messages": turns([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "c", "d")},
        {"messages": [said("user", "a\nb"), said("assistant", "c"), said("user", "d")]},
    ),
    (
        {"messages": [*turns("a"), *turns("b", "c"), {"role": "assistant", "content": "d"}, *turns("e")]},
        {"messages": [said("user", "a\nb"), said("assistant", "c\nd"), said("user", "e")]},
    ),
    (
        {"messages": turns("Rome?", [USE], [RESULT]), "tools": [WEATHER, CLOCK]},
        {
            "messages": [
                said("user", "Rome?"),
                said("assistant", None, tool_calls=[CALLED]),
                said("tool", "Sunny.", tool_call_id="toolu_1"),
            ],
            "tools": FUNCTIONS,
        },
    ),
    (
        {
            "messages": turns(
                "Rome?",
                [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "I look."}, USE],
                [{"type": "text", "text": "And now?"}, RESULT | {"is_error": True}, RESULT | {"content": None}],
                "Continue.",
                [RESULT | {"is_error": True, "content": []}],
            )
        },
        {
            "messages": [
                said("user", "Rome?"),
                said("assistant", "I look.", tool_calls=[CALLED], reasoning_content="Hm."),
                said("tool", "Error: Sunny.", tool_call_id="toolu_1"),
                said("tool", "", tool_call_id="toolu_1"),
                said("user", "And now?"),
                said("assistant", "Continue."),
                said("tool", "Error", tool_call_id="toolu_1"),
            ]
        },
    ),
    (
        {"messages": turns("Hi", [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "Yes."}], "Ok")},
        {"messages": [said("user", "Hi"), said("assistant", "Yes."), said("user", "Ok")]},
    ),
    ({"messages": turns([])}, {"messages": [said("user", "")]}),
    ({"tools": [WEATHER], "tool_choice": {"type": "auto"}}, {"tools": FUNCTIONS[:1], "tool_choice": "auto"}),
    ({"tools": [WEATHER, CLOCK], "tool_choice": {"type": "any"}}, {"tools": FUNCTIONS, "tool_choice": "required"}),
    (
        {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        {"tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False},
    ),
    (
        {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "tool", "name": "clock"}},
        {"tools": FUNCTIONS, "tool_choice": {"type": "function", "function": {"name": "clock"}}},
    ),
    ({"tools": [WEATHER], "tool_choice": {"type": "none"}}, {"tools": FUNCTIONS[:1], "tool_choice": "none"}),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ),
    (
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ),
    (
        {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["x"]},
        {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop": ["x"]},
    ),
    ({"temperature": 0, "top_k": 0}, {"temperature": 0, "top_k": 0}),
]


@pytest.mark.parametrize(("ours", "chat"), EQUIVALENTS, ids=[str(number) for number in range(len(EQUIVALENTS))])
async def test_a_request_reaches_the_engine_like_the_equivalent_chat(
    server: Server, tokenizer: Tokenizer, ours: Body, chat: Body
) -> None:
    other = Server(tokenizer, url=CHAT_URL)
    for each, body in ((server, asked(**ours)), (other, asked(**chat))):
        each.answers()
        response = await each.post(body)
        assert response.status_code == 200, await response.get_data()
    [submit], [expected] = server.engine.submitted, other.engine.submitted
    assert submit.tokens == expected.tokens
    assert (submit.grammar, submit.max_tokens, submit.logprobs) == (expected.grammar, expected.max_tokens, None)
    assert replace(submit.params, seed=expected.params.seed) == expected.params
    server.url = COUNT_URL
    only = {"model", "messages", "system", "tools", "tool_choice", "output_config", "output_format"}
    counted = await server.post({name: value for name, value in asked(**ours).items() if name in only})
    assert await body_of(counted) == {"input_tokens": len(expected.tokens)}
    assert len(server.engine.submitted) == 1, "nothing is generated"


async def test_defaults_are_anthropics(server: Server) -> None:
    server.answers()
    await answer(server, max_tokens=9)
    [submit] = server.engine.submitted
    assert submit.params == SamplingParams(temperature=1.0, top_p=1.0, seed=submit.params.seed)
    assert submit.max_tokens == 9


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, ""),
        ({"thinking": None}, ""),
        ({"thinking": {"type": "disabled"}}, "False"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "True"),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, "True"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "disabled"}}, "Falsemax"),
    ],
)
async def test_the_template_receives_the_thinking_settings(server: Server, fields: Body, variables: str) -> None:
    template = "{{ enable_thinking }}{{ reasoning_effort }}"
    server.service.prompts._template = ChatTemplate(template, server.tokenizer)
    server.answers()
    await answer(server, **fields)
    assert server.tokenizer.text(server.engine.submitted[0].tokens) == variables


# Prefill: a final assistant message


async def prompt_of(server: Server, messages: list[Body], **fields: Any) -> list[int]:
    server.answers()
    await answer(server, messages=messages, **fields)
    return server.engine.submitted[-1].tokens


async def test_a_final_assistant_message_is_continued(server: Server) -> None:
    before = await prompt_of(server, turns("Name a colour."))
    for content in ("The colour is", [{"type": "text", "text": "The colour is"}]):
        prompt = await prompt_of(server, turns("Name a colour.", content))
        assert prompt == before + server.encode("The colour is")
    assert await prompt_of(server, turns("Name a colour.", "")) == before
    server.url = COUNT_URL
    counted = await server.post({"model": MODEL, "messages": turns("Name a colour.", "The colour is")})
    assert await body_of(counted) == {"input_tokens": len(prompt)}


async def test_the_answer_does_not_repeat_the_prefill(server: Server) -> None:
    server.answers(" red.")
    body = await answer(server, messages=turns("Name a colour.", "The colour is"))
    assert body["content"] == [{"type": "text", "text": " red.", "citations": None}]


@given(
    text=st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "a", " ", "\n", "\ue000"]), max_size=6).map("".join)
)
def test_control_tokens_in_a_prefill_stay_text(tokenizer: Tokenizer, text: str) -> None:
    template = ChatTemplate(None, tokenizer)
    before = template.render_tokens([{"role": "user", "content": "Hi"}])
    tokens = template.render_tokens([{"role": "user", "content": "Hi"}], prefill=text)
    assert tokenizer.text(tokens) == tokenizer.text(before) + text
    controls = [token for token in tokens if not tokenizer.piece(token)]
    assert controls == [token for token in before if not tokenizer.piece(token)]


async def test_a_prefill_is_refused_if_the_template_begins_with_thinking(thinker: Server) -> None:
    thinker.service.prompts._template = ChatTemplate(THINKS_AT_ONCE, thinker.tokenizer)
    messages = turns("Name a colour.", "The colour is " + 100 * "very " + "red")
    for url in (URL, COUNT_URL):
        thinker.url = url
        body = {"model": MODEL, "messages": messages} | ({"max_tokens": 5} if url == URL else {})
        await assert_error(
            await thinker.post(body), 400, "invalid_request_error", "'messages'", "begins with reasoning"
        )
    thinker.url = URL
    prompt = await prompt_of(thinker, messages, thinking={"type": "disabled"})
    assert thinker.tokenizer.text(prompt).endswith("assistant\n" + messages[1]["content"])


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"messages": turns("Rome?", [USE])}, "'tool_use' is not supported in it"),
        (
            {"messages": turns("Hi", [{"type": "thinking", "thinking": "Hm.", "signature": ""}])},
            "'thinking' is not supported in it",
        ),
        ({"messages": [{"role": "assistant", "content": "I"}]}, "must contain a message that is not the assistant's"),
        (
            {
                "messages": turns("Hi", "{"),
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            },
            "must match a schema",
        ),
    ],
)
async def test_an_invalid_prefill_is_refused(server: Server, fields: Body, part: str) -> None:
    await assert_error(await server.post(asked(**fields)), 400, "invalid_request_error", "essage", part)


# Field by field

HEADERS = {"user_profile_id", "workspace_id"}
"""Parameters that the SDK sends as headers."""


def test_every_field_of_the_sdk_is_served_accepted_or_refused_by_name() -> None:
    known = {*schemas.MessagesRequest.model_fields, *schemas.UNSERVED}
    assert set(typing.get_type_hints(MessageCreateParamsStreaming)) - HEADERS <= known
    counted = {*schemas.CountTokensRequest.model_fields, *schemas.UNSERVED}
    assert set(typing.get_type_hints(MessageCountTokensParams)) - HEADERS <= counted
    pairs: list[tuple[Any, type[BaseModel]]] = [
        (sdk.TextBlockParam, schemas.TextBlock),
        (sdk.ToolUseBlockParam, schemas.ToolUseBlock),
        (sdk.ToolResultBlockParam, schemas.ToolResultBlock),
        (sdk.ThinkingBlockParam, schemas.ThinkingBlock),
        (sdk.RedactedThinkingBlockParam, schemas.RedactedThinkingBlock),
        (sdk.ToolParam, schemas.CustomTool),
        (sdk.ToolChoiceToolParam, schemas.ToolChoice),
        (sdk.ThinkingConfigEnabledParam, schemas.Thinking),
        (sdk.OutputConfigParam, schemas.OutputConfig),
        (sdk.MetadataParam, schemas.Metadata),
    ]
    for theirs, ours in pairs:
        assert set(typing.get_type_hints(theirs)) <= set(ours.model_fields), ours


EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}
ACCEPTED: list[Body] = [
    *[{name: None} for name in schemas.UNSERVED],
    *[{name: value} for name, values in schemas.UNSERVED.items() for value in values],
    *[{name: None} for name in schemas.MessagesRequest.model_fields if name not in ("model", "messages", "max_tokens")],
    {"metadata": {"user_id": "me"}},
    {"metadata": {"user_id": None}},
    {"service_tier": "standard_only"},
    {"cache_control": EPHEMERAL},
    {"stop_sequences": []},
    {"tools": []},
    {"tool_choice": {"type": "none"}},
    {"messages": turns([{"type": "text", "text": "x", "cache_control": EPHEMERAL, "citations": None}])},
    {"messages": turns("x", [USE | {"caller": {"type": "direct"}, "cache_control": EPHEMERAL}], [RESULT])},
    {
        "messages": turns(
            "x", [USE], [RESULT | {"cache_control": EPHEMERAL, "content": [{"type": "text", "text": "y"}]}]
        )
    },
    {
        "tools": [
            WEATHER | {"type": "custom", "cache_control": EPHEMERAL, "strict": True, "eager_input_streaming": True}
        ]
    },
    {"tools": [WEATHER | {"allowed_callers": ["direct"], "defer_loading": True, "input_examples": []}]},
    {"messages": turns("x", [USE | {"caller": {"type": "code_execution_20250825"}, "toolset_name": "browser"}], "y")},
    {"messages": turns("x", [USE], [RESULT | {"toolset_name": "browser"}])},
    {"messages": turns("x", [{"type": "text", "text": "y", "citations": [{"type": "char_location"}]}], "z")},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
async def test_fields_without_effect_are_accepted(server: Server, fields: Body) -> None:
    server.answers()
    body = await answer(server, **fields)
    assert body["content"][0]["text"] == "Fine."


IMAGE: Body = {"type": "image", "source": {"type": "url", "url": "http://x"}}
REFUSED: list[tuple[Body, str, str]] = [
    *[({name: {"x": 1}}, f"'{name}'", "is not supported") for name in schemas.UNSERVED],
    ({"mcp_servers": [{"type": "url"}]}, "'mcp_servers'", "is not supported"),
    ({"speed": "fast"}, "'speed'", "is not supported"),
    *[
        ({"messages": turns([{"type": kind}])}, "'messages[0].content[0]'", f"'{kind}'")
        for kind in (
            "image",
            "document",
            "search_result",
            "server_tool_use",
            "container_upload",
            "tool_use",
            "thinking",
        )
    ],
    ({"messages": turns("x", [{"type": "tool_result"}], "y")}, "'messages[1].content[0]'", "'tool_result'"),
    (
        {"messages": turns([RESULT | {"content": [{"type": "telepathy"}]}])},
        "'messages[0].content[0].content[0]'",
        "'telepathy'",
    ),
    ({"messages": turns([{"type": "text", "text": "x", "citations": {}}])}, "citations'", "list"),
    ({"messages": turns("x", [USE | {"input": 3}], "y")}, "input'", "dictionary"),
    ({"messages": turns("x", [USE | {"name": None}], "y")}, "name'", "string"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "'messages[0]'", "'tool'"),
    ({"messages": []}, "'messages'", "at least 1"),
    ({"messages": turns(5)}, "'messages[0].content'", "list"),
    ({"system": [IMAGE]}, "'system[0].type'", "'text'"),
    ({"tools": [{"type": "telepathy", "name": "telepathy"}]}, "'tools[0]'", "'custom'"),
    ({"tools": [{"name": "weather"}]}, "'tools[0].input_schema'", "Missing"),
    ({"tools": [WEATHER | {"name": "a b"}]}, "'tools[0].name'", "pattern"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "same name"),
    ({"tools": [WEATHER | {"input_examples": [{}]}]}, "'tools[0].input_examples'", "is not supported"),
    ({"tools": [WEATHER | {"allowed_callers": ["code_execution_20250825"]}]}, "'tools[0].allowed_callers'", "direct"),
    ({"tool_choice": {"type": "any"}}, "'tool_choice'", "'tools'"),
    ({"tool_choice": {"type": "tool"}}, "'tool_choice'", "'name'"),
    ({"tool_choice": {"type": "auto", "name": "weather"}, "tools": [WEATHER]}, "'tool_choice'", "'name'"),
    ({"tool_choice": {"type": "tool", "name": "clock"}, "tools": [WEATHER]}, "tool_choice", "'clock'"),
    ({"thinking": {"type": "between_tools"}}, "'thinking.type'", "'adaptive'"),
    ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "'thinking'", "'budget_tokens' is not allowed"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "'thinking.budget_tokens'", "1"),
    ({"output_config": {"task_budget": {"total": 5}}}, "'output_config.task_budget'", "is not supported"),
    ({"output_config": {"format": {"type": "json_object"}}}, "'output_config.format.type'", "'json_schema'"),
    (
        {
            "output_format": {"type": "json_schema", "schema": {}},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        "'output_format'",
        "both",
    ),
    ({"max_tokens": -1}, "'max_tokens'", "0"),
    ({"max_tokens": None}, "'max_tokens'", "integer"),
    ({"temperature": 1.5}, "'temperature'", "1"),
    ({"top_p": -1}, "'top_p'", "0"),
    ({"top_k": -1}, "'top_k'", "0"),
    ({"stop_sequences": [""]}, "'stop_sequences[0]'", "1"),
    ({"stop_sequences": ["x"] * (MAX_STOPS + 1)}, "'stop_sequences'", str(MAX_STOPS)),
    ({"stop": ["x"]}, "stop", "Unrecognized"),
    ({"metadata": {"team": "blue"}}, "metadata.team", "Unrecognized"),
    ({"messages": turns([{"type": "image", "source": {}}])}, "messages[0].content[0]", "type 'image' is not supported"),
    ({"messages": turns([{"text": "x"}])}, "messages[0].content[0]", "with a type"),
    ({"messages": [{"content": "x"}]}, "messages[0]", "with a role"),
    ({"stream": "yes"}, "'stream'", "boolean"),
]


@pytest.mark.parametrize(("fields", "param", "part"), REFUSED, ids=str)
async def test_invalid_fields_are_refused_by_name(server: Server, fields: Body, param: str, part: str) -> None:
    await assert_error(await server.post(asked(**fields)), 400, "invalid_request_error", param, part)
    assert server.engine.submitted == []


async def test_counting_accepts_only_the_fields_of_a_prompt(server: Server) -> None:
    server.url = COUNT_URL
    await assert_error(await server.post(asked()), 400, "invalid_request_error", "max_tokens")
    for name in ("model", "messages"):
        body = {key: value for key, value in asked().items() if key not in (name, "max_tokens")}
        await assert_error(await server.post(body), 400, "invalid_request_error", f"'{name}'")


# Errors


async def test_errors_have_anthropics_form_and_status(server: Server) -> None:
    invalid = "invalid_request_error"
    await assert_error(await server.post(b"{"), 400, invalid, "not valid JSON")
    await assert_error(await server.post(b"[]"), 400, invalid, "JSON object")
    await assert_error(await server.post(asked(model="other")), 404, "not_found_error", "'other'", MODEL)
    await assert_error(await server.post(asked("x " * 600)), 400, invalid, "prompt is too long", str(INFO.ctx_len))
    too_large = await server.post_raw(b"{}", {"Content-Length": str(MAX_BODY_BYTES + 1)})
    await assert_error(too_large, 413, "request_too_large", str(MAX_BODY_BYTES))
    get = await server.client.get(URL)
    await assert_error(get, 405, invalid, "GET")
    assert "POST" in get.headers["Allow"]
    await assert_error(await server.client.post(f"{URL}/batches"), 404, "not_found_error", f"{URL}/batches")
    server.url = COUNT_URL
    await assert_error(await server.post({"model": "other", "messages": turns("x")}), 404, "not_found_error", "'other'")


async def test_threads_are_refused_with_the_error_code_that_the_sdk_expects(server: Server) -> None:
    """The tool runner of the SDK then sends whole conversations."""
    for fields, details in (
        ({"thread": {"type": "create"}}, {"error_code": "thread_unsupported_request"}),
        ({"container": "x"}, None),
    ):
        body = await body_of(await server.post(asked(**fields)))
        assert body["error"]["details"] == details


async def test_errors_of_other_paths_have_openais_form(server: Server) -> None:
    for path in ("/v1/messagesque", "/v1/models/other", "/v1/nowhere"):
        response = await server.client.get(path)
        assert set((await body_of(response))["error"]) == {"message", "type", "param", "code"}
        assert "request-id" not in response.headers


async def test_paths_without_v1_have_anthropics_form_too(server: Server) -> None:
    for path in ("/messages", "/v1/messages"):
        response = await server.client.post(path, data=orjson.dumps({"model": "other", "max_tokens": 1}))
        assert response.status_code == 400
        assert (await body_of(response))["type"] == "error"
        assert response.headers["request-id"]
    assert set((await body_of(await server.client.get("/messagesque")))["error"]) >= {"param"}


async def test_a_busy_or_loading_server_sends_retry_after(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=URL, max_waiting=-INFO.max_seqs)
    response = await server.post(asked())
    await assert_error(response, 429, "rate_limit_error")
    assert int(response.headers["Retry-After"]) >= 1
    server.engine.info = None
    response = await server.post(asked())
    await assert_error(response, 503, "overloaded_error", "loaded")
    assert int(response.headers["Retry-After"]) >= 1
    server.url = COUNT_URL
    counted = await server.post({"model": MODEL, "messages": turns("x")})
    assert counted.status_code == 200, "counting needs no engine"


async def test_a_bug_is_an_api_error_without_details(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.service, "room", broken)
    assert "secret" not in await assert_error(await server.post(asked()), 500, "api_error")


async def test_the_headers_of_the_sdk_are_accepted_and_the_request_has_an_id(server: Server) -> None:
    server.answers()
    headers = {
        "x-api-key": "none",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a,b",
        "anthropic-user-profile-id": "me",
        "x-request-id": "find-me",
    }
    response = await server.post(asked(), headers)
    assert response.status_code == 200
    assert response.headers["request-id"] == response.headers["x-request-id"] == "find-me"
    async with server.stream(asked()) as stream:
        await events_of(stream)
        assert stream.headers["request-id"].startswith("req_")


# Generated requests

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**65)
    | st.integers(0, 3)
    | st.text(max_size=8)
    | st.sampled_from(["text", "user", "auto", "any", "tool_use", "<|im_end|>", MODEL, WEATHER, USE, RESULT, SCHEMA])
    | st.sampled_from(["image", "document", "search_result", "server_tool_use", "web_search_20250305", IMAGE]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "format", "schema", "input_schema"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([*schemas.MessagesRequest.model_fields, *schemas.UNSERVED]) | st.text(max_size=6)
BLOCKS = st.lists(
    st.sampled_from([USE, RESULT, {"type": "text", "text": "x"}, {"type": "thinking", "thinking": "x"}]) | VALUES,
    max_size=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": BLOCKS | st.text(max_size=4)}
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def answering(tokenizer: Tokenizer) -> Callable[[], Server]:
    """Returns the same server for all examples. The first example makes it, because it belongs to an event loop."""
    servers: list[Server] = []

    def get() -> Server:
        if not servers:
            servers.append(Server(tokenizer, max_waiting=1000, url=URL))
            servers[0].answers("Fine.")
        return servers[0]

    return get


async def assert_answer_or_refusal(server: Server, body: Body) -> None:
    response = await server.post_raw(json.dumps(body).encode())
    data = bytes(await response.get_data(as_text=False))
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, data
        MessageError.model_validate_json(data)
    elif response.headers["Content-Type"].startswith("text/event-stream"):
        put_together(named_events(data))
    else:
        MessageAnswer.model_validate_json(data)
    assert server.engine.num_active == 0


@settings(max_examples=300)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=3))
async def test_any_value_in_any_field_is_answered_or_refused(answering: Callable[[], Server], fields: Body) -> None:
    await assert_answer_or_refusal(answering(), asked(**fields))


@given(messages=MESSAGES, stream=st.booleans())
async def test_any_conversation_is_answered_or_refused(
    answering: Callable[[], Server], messages: list[Body], stream: bool
) -> None:
    await assert_answer_or_refusal(answering(), asked(messages=messages, stream=stream))
