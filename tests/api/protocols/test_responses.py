"""POST /v1/responses over a fake engine: the events that clients receive, and the requests for the engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import orjson
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import InputTokenCountParams, InputTokenCountResponse, ResponseItem, ResponseStreamEvent
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import BaseModel, TypeAdapter
from quart import Response
from trio.testing import MockClock, wait_all_tasks_blocked

from api.models.defaults import ModelDefaults
from api.protocols.answer import PING_SECONDS
from api.protocols.chat.conversation import as_conversation
from api.protocols.chat.request import ChatRequest
from api.protocols.fields import GenerationRequest
from api.protocols.responses import types as wire
from api.protocols.responses.request import UNSERVED, UNSERVED_IN_COUNTS, InputTokensRequest, ResponseRequest
from api.protocols.store import MAX_RESPONSES, KeptItem, KeptResponse, KeptResponses
from api.protocols.thought_fields import ThoughtFields
from api.serving.prompts import PromptBuilder
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, SamplingParams
from tests.api.fakes import INFO, MODEL, Server

URL = "/v1/responses"
CLOCK = {"type": "function", "name": "clock", "description": "The time.", "parameters": None, "strict": True}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
HOME = {"type": "namespace", "name": "home", "description": "What is at home.", "tools": [CLOCK, WEATHER]}
SEARCH = {"type": "web_search", "external_web_access": False, "search_context_size": "low"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer, url=URL)


@pytest.fixture
def thinking(tokenizer: Tokenizer) -> Server:
    """A server whose model thinks and has a template for tool calls."""
    return thinker(tokenizer)


def thinker(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer, url=URL)
    template = (Path(__file__).parents[1] / "text" / "dialects" / "templates" / "qwen-3.jinja").read_text()
    server.service.prompts = PromptBuilder(tokenizer, template)
    return server


def ask(given: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": MODEL, "input": given} | fields


async def body_of(response: Response) -> Any:
    return orjson.loads(await response.get_data(as_text=False))


async def respond(server: Server, given: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """A non-streamed response. Asserts that the status is 200, and validates it against our type and OpenAI's type."""
    response = await server.post(ask(given, **fields))
    body = await body_of(response)
    assert response.status_code == 200, body
    wire.Response.model_validate(body)
    OpenAIResponse.model_validate(body, strict=True)
    assert isinstance(body, dict)
    return body


async def assert_error(response: Response, status: int, code: str | None, param: str | None, *parts: str) -> None:
    """Asserts that the body is exactly OpenAI's error object."""
    body = await body_of(response)
    assert (response.status_code, set(body)) == (status, {"error"}), body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert [part for part in parts if part not in error["message"]] == [], error["message"]


async def streamed(server: Server, given: Any = "Hello", /, **fields: Any) -> list[dict[str, Any]]:
    """All events of a stream. Checks their numbers, and validates them against our types and OpenAI's types."""
    async with server.stream(ask(given, **fields)) as stream:
        events = await stream.rest()
    check_events(events)
    return events


def check_events(events: list[dict[str, Any]]) -> None:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        wire.ResponseEvent.model_validate(event)
        all_fields(STREAM_EVENT.validate_python(event, strict=True), event["type"])


def all_fields(value: BaseModel, path: str) -> None:
    """Asserts that there are no fields outside OpenAI's type, except those that OpenAI's API also returns."""
    known = {"Response": {"store"}, "Logprob": {"bytes"}, "LogprobTopLogprob": {"bytes"}}
    extra = set(value.model_extra or ()) - known.get(type(value).__name__, set())
    assert not extra, (path, extra)
    for name in value.model_fields_set:
        inner = getattr(value, name)
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, BaseModel):
                all_fields(item, f"{path}.{name}")


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def without_ids(value: Any) -> Any:
    """Removes the ids, which differ between two answers to one question."""
    if isinstance(value, dict):
        return {key: without_ids(each) for key, each in value.items() if key not in ("id", "call_id", "item_id")}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


# Non-streamed responses


async def test_a_response_is_a_message_with_its_text(server: Server) -> None:
    server.answers("Fine.")
    body = await respond(server)
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", MODEL)
    assert (body["error"], body["incomplete_details"]) == (None, None)
    assert body["completed_at"] >= body["created_at"]
    [message] = body["output"]
    assert message["id"].startswith("msg_")
    assert without_ids(message) == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Fine.", "annotations": [], "logprobs": []}],
    }


async def test_usage_counts_prompt_output_reasoning_and_cached_tokens(thinking: Server) -> None:
    tokens = thinking.encode("<think>\nHm.\n</think>\n\nFine.")
    thinking.engine.answer = lambda submit: [Output(submit.request_id, tokens, "stop", cached_tokens=7)]
    usage = (await respond(thinking))["usage"]
    num_prompt = len(thinking.engine.submitted[0].tokens)
    details = usage.pop("output_tokens_details")
    assert 0 < details["reasoning_tokens"] < len(tokens)
    assert usage == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 0},
        "output_tokens": len(tokens),
        "total_tokens": num_prompt + len(tokens),
    }


async def test_a_truncated_answer_is_incomplete(server: Server) -> None:
    server.answers("Fine", "length")
    body = await respond(server, max_output_tokens=5)
    assert server.engine.submitted[0].max_tokens == 5
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["completed_at"] is None
    assert [item["status"] for item in body["output"]] == ["incomplete"]


async def test_an_empty_answer_is_an_empty_message(server: Server) -> None:
    server.answers("")
    [message] = (await respond(server))["output"]
    assert (message["type"], message["content"][0]["text"]) == ("message", "")


async def test_reasoning_text_and_calls_become_items_in_order(thinking: Server) -> None:
    thinking.answers(f"<think>\nRome, then.\n</think>\n\nLet me see. {CALL}\n{CALL.replace('Rome', 'Oslo')}")
    body = await respond(thinking, tools=[CLOCK, WEATHER])
    thought, message, first, second = body["output"]
    assert thought["id"].startswith("rs_")
    assert without_ids(thought) == {
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Rome, then."}],
    }
    assert message["content"][0]["text"] == "Let me see. "
    assert first["id"].startswith("fc_")
    assert first["call_id"].startswith("call_")
    assert first["call_id"] != second["call_id"]
    assert without_ids([first, second]) == [
        {"type": "function_call", "status": "completed", "name": "weather", "arguments": f'{{"city": "{city}"}}'}
        for city in ("Rome", "Oslo")
    ]


async def test_text_after_a_call_is_a_separate_message(server: Server) -> None:
    server.answers(f"One. {CALL} Two.")
    output = (await respond(server, tools=[WEATHER]))["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert [item["content"][0]["text"] for item in output[::2]] == ["One. ", "Two."]


async def test_a_truncated_call_or_reasoning_is_incomplete(thinking: Server) -> None:
    thinking.answers(CALL[: CALL.index("Rome") + 2], "length")
    [call] = (await respond(thinking, tools=[WEATHER]))["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"city": "Ro')
    thinking.answers("<think>\nHm", "length")
    [thought] = (await respond(thinking))["output"]
    assert (thought["type"], thought["status"]) == ("reasoning", "incomplete")


@pytest.mark.parametrize(
    ("stop", "status", "arguments"),
    [("ome", "incomplete", '{"city": "R'), ("</t", "completed", '{"city": "Rome"}')],
)
async def test_a_call_cut_by_a_stop_string_is_incomplete(
    server: Server, stop: str, status: str, arguments: str
) -> None:
    server.answers(CALL)
    fields = {"tools": [WEATHER], "stop": [stop]}
    body = await respond(server, **fields)
    [call] = body["output"]
    assert (body["status"], call["status"], call["arguments"]) == (status, status, arguments)
    assert body["incomplete_details"] == (None if status == "completed" else {"reason": None})
    events = await streamed(server, **fields)
    assert events[-1]["type"] == f"response.{status}"
    assert without_ids(events[-1]["response"]["output"]) == without_ids(body["output"])
    server.answers("Nice to meet you.")
    assert (await respond(server, **fields))["status"] == "completed", "no call was cut"


async def test_a_response_repeats_the_settings_of_its_request(server: Server) -> None:
    server.answers('{"a": 1}')
    asked = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "max_tool_calls": 3,
        "metadata": {"team": "blue"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "none",
        "tools": [CLOCK, WEATHER],
        "top_p": 0.25,
        "truncation": "auto",
        "user": "me",
    }
    body = await respond(server, **asked)
    assert {name: body[name] for name in asked} == asked
    schema = {"type": "json_schema", "name": "x", "description": None, "schema": {"type": "object"}, "strict": True}
    body = await respond(server, text={"format": schema}, reasoning={"effort": "low"})
    assert body["text"] == {"format": schema, "verbosity": "medium"}
    assert body["reasoning"] == {"effort": "low", "summary": None}
    body = await respond(server)
    assert {name: body[name] for name in asked} == {
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "prompt_cache_key": None,
        "safety_identifier": None,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }


async def test_a_response_contains_the_defaults_of_the_model_for_missing_settings(tokenizer: Tokenizer) -> None:
    defaults = ModelDefaults(temperature=0.25, top_p=0.5, max_tokens=20)
    server = Server(tokenizer, url=URL, defaults=defaults)
    server.answers("Fine.")
    names = ("temperature", "top_p", "max_output_tokens")
    body = await respond(server)
    assert [body[name] for name in names] == [0.25, 0.5, 20]
    asked = {"temperature": 1.0, "top_p": 0.75, "max_output_tokens": 30}
    body = await respond(server, **asked)
    assert {name: body[name] for name in names} == asked
    assert [submit.params.temperature for submit in server.engine.submitted] == [0.25, 1.0]
    assert [submit.max_tokens for submit in server.engine.submitted] == [20, 30]


# Streams

MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
THOUGHT = ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
CALLED = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
BEGUN = ["created", "in_progress"]


async def test_a_stream_of_text_has_openais_events_in_order(server: Server) -> None:
    tokens = server.encode("Hello world")
    async with server.stream(ask()) as stream:
        created, begun = await stream.chunk(), await stream.chunk()
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert created["response"] == begun["response"]
        assert created["response"]["status"] == "in_progress"
        assert (created["response"]["output"], created["response"]["usage"]) == ([], None)
        server.engine.emit(tokens[:1])
        first = [await stream.chunk() for _ in range(3)]
        server.engine.emit(tokens[1:])
        second = await stream.chunk()
        server.engine.emit([], "stop")
        rest = await stream.rest()
    events = [created, begun, *first, second, *rest]
    check_events(events)
    assert types_of(events) == [
        *BEGUN,
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    added, part, one = first
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert (one["delta"], second["delta"], rest[0]["text"]) == ("Hello", " world", "Hello world")
    assert {event["item_id"] for event in events if "item_id" in event} == {added["item"]["id"]}
    assert rest[-1]["response"]["output"] == [rest[-2]["item"]]
    assert rest[-1]["response"]["id"] == created["response"]["id"]
    assert rest[-1]["response"]["usage"]["output_tokens"] == 2


async def test_a_stream_of_reasoning_text_and_calls_sends_one_item_after_another(thinking: Server) -> None:
    thinking.answers(f"<think>\nHm.\n</think>\n\nSo. {CALL}\n{CALL}")
    events = await streamed(thinking, tools=[WEATHER])
    assert types_of(events) == [
        *BEGUN,
        *THOUGHT,
        "content_part.done",
        "output_item.done",
        *MESSAGE,
        "output_item.done",
        *CALLED,
        *CALLED,
        "completed",
    ]
    added = [event for event in events if event["type"].endswith("item.added")]
    done = [event for event in events if event["type"].endswith("item.done")]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"]["id"] for event in added] == [event["item"]["id"] for event in done]
    assert events[-1]["response"]["output"] == [event["item"] for event in done]
    [arguments, _] = [event["arguments"] for event in events if event["type"].endswith("arguments.done")]
    assert arguments == '{"city": "Rome"}'


async def test_a_truncated_stream_ends_as_incomplete(server: Server) -> None:
    server.answers("Fine", "length")
    events = await streamed(server)
    assert types_of(events) == [*BEGUN, *MESSAGE, "output_item.done", "incomplete"]
    assert events[-2]["item"]["status"] == "incomplete"
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_an_empty_stream_has_an_empty_message(server: Server) -> None:
    server.answers("")
    without_delta = [name for name in MESSAGE if name != "output_text.delta"]
    assert types_of(await streamed(server)) == [*BEGUN, *without_delta, "output_item.done", "completed"]


async def test_the_last_events_are_sent_in_one_write(server: Server) -> None:
    async with server.stream(ask()) as stream:
        await stream.write()
        server.engine.emit(server.encode("Fine."), "stop")
        assert await stream.write() is not None
        assert await stream.write() is None


TEXTS = [
    "Fine.",
    "",
    f"A {CALL}",
    f"{CALL}\n{CALL} B",
    f"<think>\nHm.\n</think>\n\nC {CALL}",
    "<think>D",
    "<think",
    "🦜",
]


@pytest.fixture(scope="module")
def thinkers(tokenizer: Tokenizer) -> Callable[[], Server]:
    """Returns the same server for all examples. The first example makes it, because it belongs to an event loop."""
    servers: list[Server] = []

    def get() -> Server:
        if not servers:
            servers.append(thinker(tokenizer))
        return servers[0]

    return get


@given(
    text=st.sampled_from(TEXTS),
    cuts=st.lists(st.integers(1, 6), max_size=12),
    reason=st.sampled_from(["stop", "length"]),
)
async def test_the_events_add_up_to_the_whole_response_for_any_chunks(
    thinkers: Callable[[], Server], text: str, cuts: list[int], reason: str
) -> None:
    server = thinkers()
    server.answers(text, reason)
    whole = await respond(server, tools=[WEATHER])
    server.engine.answer = None
    tokens = server.encode(text)
    async with server.stream(ask(tools=[WEATHER])) as stream:
        await server.engine.wait_active()
        for cut in cuts:
            server.engine.emit(tokens[:cut])
            del tokens[:cut]
            await wait_all_tasks_blocked()
        server.engine.emit(tokens, reason)
        events = await stream.rest()
    check_events(events)
    final = events[-1]["response"]
    assert without_ids(final["output"]) == without_ids(whole["output"])
    assert final["status"] == whole["status"]
    for index, item in enumerate(final["output"]):
        deltas = [event for event in events if event.get("output_index") == index and "delta" in event]
        text_of = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(event["delta"] for event in deltas) == text_of
        assert {event["item_id"] for event in deltas} <= {item["id"]}


async def test_a_silent_stream_sends_pings(server: Server, autojump_clock: MockClock) -> None:
    async with server.stream(ask()) as stream:
        await stream.write()
        assert await stream.write() == b": ping\n\n"
        assert trio.current_time() >= PING_SECONDS
        server.engine.emit([], "stop")
        await stream.rest()


# Failures


async def test_an_engine_death_during_a_stream_ends_it_with_a_failed_response(server: Server) -> None:
    async with server.stream(ask()) as stream:
        events = [await stream.chunk(), await stream.chunk()]
        server.engine.emit(server.encode("Hello"))
        events += [await stream.chunk() for _ in range(3)]
        server.engine.die()
        events += await stream.rest()
    check_events(events)
    assert types_of(events) == [*BEGUN, *MESSAGE[:3], "failed"]
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert "cannot be loaded again" in failed["error"]["message"]
    assert [item["status"] for item in failed["output"]] == ["incomplete"]
    await assert_error(await server.client.get(f"{URL}/{failed['id']}"), 404, None, None)


async def test_an_engine_death_before_the_first_event_is_a_failed_response(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        server.engine.info = None
        server.engine.ready_info()

    monkeypatch.setattr(server.engine, "start", lambda *_: gone())
    events = await streamed(server)
    assert types_of(events) == [*BEGUN, "failed"]
    assert events[-1]["response"]["error"]["code"] == "server_error"


async def test_a_request_that_fails_in_the_engine_is_a_500_with_its_reason(server: Server) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "error", error="the model failed")]
    await assert_error(await server.post(ask()), 500, "internal_error", None, "the model failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unsupported_grammar_is_refused_with_the_name_of_its_field(server: Server, stream: bool) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "refused", error="no such type")]
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "strin"}}
    body = ask(text={"format": schema}, stream=stream)
    await assert_error(await server.post(body), 400, "invalid_grammar", "text.format", "no such type")


async def test_a_grammar_that_fails_later_is_an_error_of_the_client(server: Server) -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {}}
    async with server.stream(ask(text={"format": schema})) as stream:
        await server.engine.wait_active()
        server.engine.emit(server.encode("1"))
        await stream.chunk()
        server.engine.emit([], "refused", error="no such token")
        failed = (await stream.rest())[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "invalid_prompt"


async def test_a_disconnect_cancels_the_request_and_stores_no_response(server: Server) -> None:
    async with server.stream(ask()) as stream:
        created = await stream.chunk()
        server.engine.emit(server.encode("Hello"))
        await stream.write()
        await stream.leave()
    assert server.engine.num_active == 0
    assert server.engine.cancelled == [server.engine.submitted[0].request_id]
    await assert_error(await server.client.get(f"{URL}/{created['response']['id']}"), 404, None, None)


# What the engine receives: the same as for the equivalent chat completion

SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi.", "annotations": []}]}
CALLS = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."}
THOUGHTS = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
USER = {"role": "user", "content": "Hello"}
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CHAT_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."}
CONVERSATIONS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "a string": ("Hello", [USER]),
    "an easy message": ([USER], [USER]),
    "parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": text} for text in "ab"]}],
        [{"role": "user", "content": "a\nb"}],
    ),
    "all roles": (
        [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, USER, SAID, USER],
        [
            {"role": "system", "content": "S"},
            {"role": "developer", "content": "D"},
            USER,
            {"role": "assistant", "content": "Hi."},
            USER,
        ],
    ),
    "a refusal": (
        [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER],
        [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER],
    ),
    "an easy assistant": (
        [USER, {"role": "assistant", "content": "Hi."}, {"role": "assistant", "content": "Ho."}, USER],
        [USER, {"role": "assistant", "content": "Hi.\nHo."}, USER],
    ),
    "comments and an answer": (
        [USER, SAID | {"phase": "commentary"}, THOUGHTS, SAID | {"phase": "final_answer"}, USER],
        [USER, {"role": "assistant", "content": "Hi.\nHi.", "reasoning_content": "Hm."}, USER],
    ),
    "reasoning in a row and between calls": (
        [USER, THOUGHTS, THOUGHTS, CALLS, THOUGHTS, CALLS, RESULT, RESULT],
        [
            USER,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.\nHm.\nHm.",
                "tool_calls": [CHAT_CALL, CHAT_CALL],
            },
            CHAT_RESULT,
            CHAT_RESULT,
        ],
    ),
    "a call": (
        [USER, CALLS, RESULT],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}, CHAT_RESULT],
    ),
    "reasoning, text and calls": (
        [USER, THOUGHTS, SAID, CALLS, CALLS, RESULT, RESULT | {"output": [{"type": "input_text", "text": "Sunny."}]}],
        [
            USER,
            {
                "role": "assistant",
                "content": "Hi.",
                "reasoning_content": "Hm.",
                "tool_calls": [CHAT_CALL, CHAT_CALL],
            },
            CHAT_RESULT,
            CHAT_RESULT,
        ],
    ),
    "text around a call": (
        [USER, SAID, CALLS, SAID, RESULT],
        [USER, {"role": "assistant", "content": "Hi.Hi.", "tool_calls": [CHAT_CALL]}, CHAT_RESULT],
    ),
    "a summary": (
        [USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, CALLS, RESULT],
        [
            USER,
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CHAT_CALL]},
            CHAT_RESULT,
        ],
    ),
    "reasoning without text": ([{"type": "reasoning", "summary": []}, USER], [USER]),
}


async def chat_prompt(server: Server, messages: list[dict[str, Any]], **fields: Any) -> list[int]:
    body = {"model": MODEL, "messages": messages} | fields
    return await server.service.prompts.chat(as_conversation(ChatRequest.model_validate(body)))


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", ["plain", "thinking"])
async def test_items_make_the_same_prompt_as_chat_messages(tokenizer: Tokenizer, name: str, kind: str) -> None:
    server = Server(tokenizer, url=URL) if kind == "plain" else thinker(tokenizer)
    server.answers()
    items, messages = CONVERSATIONS[name]
    await respond(server, items, tools=[WEATHER])
    tools = [{"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}]
    assert server.engine.submitted[-1].tokens == await chat_prompt(server, messages, tools=tools)
    await respond(server, items, instructions="Be brief.")
    brief = [{"role": "system", "content": "Be brief."}, *messages]
    assert server.engine.submitted[-1].tokens == await chat_prompt(server, brief)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chain_of_responses_is_one_conversation(thinking: Server, stream: bool) -> None:
    async def next_response(given: Any, previous: str | None, **fields: Any) -> dict[str, Any]:
        fields |= {"previous_response_id": previous, "tools": [WEATHER]}
        if not stream:
            return await respond(thinking, given, **fields)
        response: dict[str, Any] = (await streamed(thinking, given, **fields))[-1]["response"]
        return response

    thinking.answers(f"<think>\nRome.\n</think>\n\nI look. {CALL}")
    first = await next_response("How is the weather?", None, instructions="Be brief.")
    thinking.answers("Sunny it is.")
    [call_id] = [item["call_id"] for item in first["output"] if "call_id" in item]
    result = {"type": "function_call_output", "call_id": call_id, "output": "Sunny."}
    second = await next_response([result], first["id"])
    third = await next_response("Thanks.", second["id"], instructions="Be long.")
    assert third["previous_response_id"] == second["id"]
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "How is the weather?"},
        {
            "role": "assistant",
            "content": "I look. ",
            "reasoning_content": "Rome.",
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "Sunny."},
        {"role": "assistant", "content": "Sunny it is."},
        {"role": "user", "content": "Thanks."},
    ]
    tools = [{"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}]
    brief, long = ({"role": "system", "content": f"Be {how}."} for how in ("brief", "long"))
    prompts = [[brief, *conversation[:1]], conversation[:3], [long, *conversation]]
    assert [submit.tokens for submit in thinking.engine.submitted] == [
        await chat_prompt(thinking, messages, tools=tools) for messages in prompts
    ]


async def test_one_response_may_be_continued_in_two_ways(server: Server) -> None:
    server.answers("Fine.")
    first = await respond(server, "a")
    for text in "bc":
        await respond(server, text, previous_response_id=first["id"])
        turns = [("user", "a"), ("assistant", "Fine."), ("user", text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        assert server.engine.submitted[-1].tokens == await chat_prompt(server, messages)


async def test_items_can_be_sent_back_as_returned_as_listed_and_as_references(thinking: Server) -> None:
    thinking.answers(f"<think>\nRome.\n</think>\n\nI look. {CALL}")
    first = await respond(thinking, "How?", tools=[WEATHER])
    [call_id] = [item["call_id"] for item in first["output"] if "call_id" in item]
    result = {"type": "function_call_output", "call_id": call_id, "output": "Sunny."}
    second = await respond(thinking, [result], previous_response_id=first["id"], tools=[WEATHER])
    listed = await body_of(await thinking.client.get(f"{URL}/{second['id']}/input_items?order=asc"))
    by_hand = [{"role": "user", "content": "How?"}, *first["output"], result]
    references = [{"type": "item_reference", "id": listed["data"][0]["id"]}]
    references += [{"id": item["id"]} for item in first["output"]]
    for items in (listed["data"], by_hand, [*references, result]):
        await respond(thinking, items, tools=[WEATHER])
        assert thinking.engine.submitted[-1].tokens == thinking.engine.submitted[1].tokens


async def test_every_parameter_reaches_the_engine(server: Server) -> None:
    server.answers()
    await respond(server, temperature=0.5, top_p=0.25, max_output_tokens=9, seed=-3, top_k=7, min_p=0.125)
    [submit] = server.engine.submitted
    assert submit.params == SamplingParams(temperature=0.5, top_p=0.25, seed=-3, top_k=7, min_p=0.125)
    assert (submit.max_tokens, submit.logprobs, submit.grammar) == (9, None, "")
    await respond(server)
    assert server.engine.submitted[1].max_tokens == INFO.ctx_len - len(server.engine.submitted[1].tokens)
    assert server.engine.submitted[1].params == SamplingParams(seed=server.engine.submitted[1].params.seed)


async def test_max_output_tokens_may_exceed_the_context(server: Server) -> None:
    """Clients send the maximum of their model, even if the context is smaller."""
    server.answers("Fine", "length")
    for bound, limit in ((30, 30), (5000, None)):
        body = await respond(server, max_output_tokens=bound)
        submit = server.engine.submitted[-1]
        assert submit.max_tokens == (limit or INFO.ctx_len - len(submit.tokens))
        assert (body["max_output_tokens"], body["incomplete_details"]) == (bound, {"reason": "max_output_tokens"})


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"const": 1}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}}},
        ),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": [CLOCK, WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {
                "tools": [CLOCK, WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "weather"}],
                },
            },
            {"tool_choice": "auto"},
        ),
        ({"guided_choice": ["a"]}, {"guided_choice": ["a"]}),
    ],
    ids=str,
)
async def test_the_grammar_of_an_answer_is_the_same_as_for_chat(
    server: Server, here: dict[str, Any], there: dict[str, Any]
) -> None:
    server.answers("1")
    await respond(server, **here)
    if "tools" in here:  # only the tool that may be called
        there |= {"tools": [{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}]}
    server.url = "/v1/chat/completions"
    response = await server.post({"model": MODEL, "messages": [USER]} | there)
    assert response.status_code == 200
    first, second = server.engine.submitted
    assert first.grammar == second.grammar != ""


async def test_many_tools_with_long_names_are_accepted(server: Server) -> None:
    long = "x" * 128
    server.answers(CALL.replace("weather", long))
    [call] = (await respond(server, tools=[WEATHER | {"name": long}]))["output"]
    assert (call["type"], call["name"]) == ("function_call", long)
    many = [CLOCK | {"name": f"clock_{number}"} for number in range(1024)]
    body = await respond(server, [USER, call, RESULT], tools=many, tool_choice="none")
    assert len(body["tools"]) == 1024


NAMESPACES = [WEATHER, HOME, HOME | {"name": "mcp__away__", "description": "", "tools": [WEATHER]}, SEARCH]
KNOWN: dict[str, dict[str, Any]] = {
    "weather": WEATHER,
    "home__clock": CLOCK | {"description": f"What is at home.\n\n{CLOCK['description']}"},
    "home__weather": WEATHER,
    "mcp__away__weather": WEATHER,
}
"""The function definitions that the prompt contains for NAMESPACES, by name."""


async def test_functions_in_namespaces_are_tools_named_by_both(server: Server) -> None:
    server.answers()
    chosen = {"type": "function", "name": "home__weather"}
    body = await respond(server, tools=NAMESPACES, tool_choice=chosen)
    assert body["tool_choice"] == chosen
    assert [tool["type"] for tool in body["tools"]] == ["function", "namespace", "namespace"]
    assert body["tools"][1] == HOME
    definitions = [
        {"type": "function", "function": {key: tool[key] for key in ("description", "parameters")} | {"name": name}}
        for name, tool in KNOWN.items()
    ]
    assert server.engine.submitted[0].tokens == await chat_prompt(server, [USER], tools=definitions)


async def test_calls_have_a_separate_namespace_and_can_be_sent_back_with_it(server: Server) -> None:
    names = ["weather", "home__weather", "mcp__away__weather"]
    server.answers("\n".join(CALL.replace("weather", name) for name in names))
    calls = (await respond(server, tools=NAMESPACES))["output"]
    assert [call["name"] for call in calls] == ["weather"] * 3
    assert [call.get("namespace") for call in calls] == [None, "home", "mcp__away__"]
    events = await streamed(server, tools=NAMESPACES)
    assert without_ids(events[-1]["response"]["output"]) == without_ids(calls)
    results = [RESULT | {key: call[key] for key in ("call_id", "namespace") if key in call} for call in calls]
    again = await respond(server, [USER, *calls, *results], tools=NAMESPACES, tool_choice="none")
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    made = [
        {"id": call["call_id"], "type": "function", "function": function | {"name": name}}
        for call, name in zip(calls, names, strict=True)
    ]
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": made}]
    messages += [CHAT_RESULT | {"tool_call_id": call["call_id"]} for call in calls]
    assert server.engine.submitted[-1].tokens == await chat_prompt(server, messages)
    listed = await body_of(await server.client.get(f"{URL}/{again['id']}/input_items?order=asc"))
    wire.ResponseItems.model_validate(listed)
    assert listed["data"][1:4] == calls
    assert [item.get("namespace") for item in listed["data"][4:]] == [None, "home", "mcp__away__"]


async def test_metadata_of_messages_does_not_change_the_prompt(server: Server) -> None:
    server.answers("Fine.")
    notes: dict[str, Any] = {"metadata": {"turn": 1}, "end_turn": True, "phase": "commentary"}
    await respond(server, [USER, SAID, USER])
    await respond(server, [USER | notes, SAID | notes, USER])
    first, second = server.engine.submitted
    assert first.tokens == second.tokens


async def test_the_template_receives_the_reasoning_effort(thinking: Server) -> None:
    thinking.answers()
    await respond(thinking, reasoning={"effort": "none"})
    assert thinking.engine.submitted[0].tokens == await chat_prompt(thinking, [USER], reasoning_effort="none")
    assert thinking.engine.submitted[0].tokens != await chat_prompt(thinking, [USER])


# Logprobs


async def test_logprobs_are_those_of_the_tokens_of_the_text(thinking: Server) -> None:
    """Reasoning, calls and their end markers have none, whether the tokens arrive one by one or together."""
    text = f"<think>\nRome it is.\n</think>\n\n<b>I look. {CALL} Done."
    tokens = thinking.encode(text)
    logprobs = [(-0.5, [(token, -0.5), (5, -1.0)]) for token in tokens]
    thinking.engine.answer = lambda submit: [
        Output(submit.request_id, tokens[:1], logprobs=logprobs[:1]),
        Output(submit.request_id, tokens[1:], "stop", logprobs=logprobs[1:]),
    ]
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "tools": [WEATHER]}
    output = (await respond(thinking, **fields))["output"]
    assert thinking.engine.submitted[0].logprobs == 2
    messages = [item["content"][0] for item in output if item["type"] == "message"]
    assert [message["text"] for message in messages] == ["<b>I look. ", "Done."]
    for message in messages:
        spelled = [bytes(entry["bytes"]).decode() for entry in message["logprobs"]]
        assert message["text"] in "".join(spelled), "a token may also contain the start of a call"
        assert message["text"] not in "".join(spelled[1:])
        assert message["text"] not in "".join(spelled[:-1])
        assert {len(entry["top_logprobs"]) for entry in message["logprobs"]} == {2}
    events = await streamed(thinking, **fields)
    for name in ("output_text.done", "output_text.delta"):
        entries = [entry for event in events if event["type"].endswith(name) for entry in event["logprobs"]]
        assert entries == [entry for message in messages for entry in message["logprobs"]]


async def test_logprobs_are_computed_only_on_request(server: Server) -> None:
    server.answers()
    await respond(server, include=[], top_logprobs=0)
    assert server.engine.submitted[0].logprobs is None


# Stored responses


async def test_a_response_is_stored_as_it_was_returned(server: Server) -> None:
    server.answers("Fine.")
    body = await respond(server, metadata={"team": "blue"})
    response = await server.client.get(f"{URL}/{body['id']}")
    assert response.status_code == 200
    assert await body_of(response) == body
    server.answers("Fine.", "length")
    final = (await streamed(server))[-1]["response"]
    assert (
        await body_of(await server.client.get(f"{URL}/{final['id']}?stream=false&include=reasoning.encrypted_content"))
        == final
    )


async def test_a_response_is_stored_once_it_has_ended(server: Server) -> None:
    async with server.stream(ask()) as stream:
        created = (await stream.chunk())["response"]
        await stream.chunk()
        server.engine.emit(server.encode("Fine."))
        await stream.write()
        place = f"{URL}/{created['id']}"
        await assert_error(await server.client.get(place), 404, None, None, created["id"])
        server.engine.emit([], "stop")
        await stream.rest()
    assert (await server.client.get(place)).status_code == 200


async def test_a_response_with_store_false_is_not_stored(server: Server) -> None:
    server.answers("Fine.")
    body = await respond(server, store=False)
    await assert_error(await server.client.get(f"{URL}/{body['id']}"), 404, None, None)
    for again in ("Hello", None):
        refused = await server.post(ask(again, previous_response_id=body["id"]))
        await assert_error(refused, 400, "previous_response_not_found", "previous_response_id", body["id"])


async def test_deleting_a_response_keeps_the_responses_that_continue_it(server: Server) -> None:
    server.answers("Fine.")
    first = await respond(server, "a")
    second = await respond(server, "b", previous_response_id=first["id"])
    deleted = await server.client.delete(f"{URL}/{first['id']}")
    assert await body_of(deleted) == {"id": first["id"], "object": "response", "deleted": True}
    for ask_again in (server.client.get, server.client.delete):
        await assert_error(await ask_again(f"{URL}/{first['id']}"), 404, None, None, first["id"])
    await assert_error(await server.client.get(f"{URL}/{first['id']}/input_items"), 404, None, None, first["id"])
    await respond(server, "c", previous_response_id=second["id"])
    turns = [("user", "a"), ("assistant", "Fine."), ("user", "b"), ("assistant", "Fine."), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert server.engine.submitted[-1].tokens == await chat_prompt(server, messages)


async def test_input_items_are_listed_in_pages_in_either_order(server: Server) -> None:
    server.answers("Fine.")
    first = await respond(server, [{"role": "user", "content": text} for text in "abc"])
    second = await respond(server, [{"role": "user", "content": "d", "id": "mine"}], previous_response_id=first["id"])

    async def page(query: str = "") -> dict[str, Any]:
        response = await server.client.get(f"{URL}/{second['id']}/input_items{query}")
        assert response.status_code == 200
        body = await body_of(response)
        wire.ResponseItems.model_validate(body)
        for item in body["data"]:
            ITEM.validate_python(item, strict=True)
        assert isinstance(body, dict)
        return body

    def texts(listed: dict[str, Any]) -> list[str]:
        return [item["content"][0]["text"] for item in listed["data"]]

    latest = await page()
    assert texts(latest) == ["d", "Fine.", "c", "b", "a"]
    assert latest["data"][0]["id"] == latest["first_id"] == "mine"
    assert latest["has_more"] is False
    oldest = await page("?order=asc&limit=2&include[]=message.input_image.image_url")
    assert (texts(oldest), oldest["has_more"]) == (["a", "b"], True)
    rest = await page(f"?order=asc&after={oldest['last_id']}")
    assert (texts(rest), rest["has_more"]) == (["c", "Fine.", "d"], False)
    nothing = await page("?order=asc&after=mine")
    assert nothing == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_items_with_the_same_id_are_each_listed_once(server: Server) -> None:
    """Some clients use one id for all their items. Some repeat the items of the response that they continue."""
    server.answers("Fine.")
    first = await respond(server, [{"role": "user", "content": text, "id": "mine"} for text in "ab"])
    [said] = first["output"]
    again = [said, {"id": said["id"]}, {"role": "user", "content": "c", "id": "mine"}]
    second = await respond(server, again, previous_response_id=first["id"])
    texts, after = [], ""
    for _ in range(6):
        place = f"{URL}/{second['id']}/input_items?order=asc&limit=1{after}"
        page = await body_of(await server.client.get(place))
        texts += [item["content"][0]["text"] for item in page["data"]]
        after = f"&after={page['last_id']}"
    assert texts == ["a", "b", "Fine.", "Fine.", "Fine.", "c"]
    assert page["has_more"] is False


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("?stream=true", "invalid_value", "stream"),
        ("?starting_after=1", "unknown_parameter", "starting_after"),
        ("?include=everything", "invalid_value", "include[0]"),
        ("?include[]=message.output_text.logprobs", "unsupported_parameter", "include"),
        ("/input_items?limit=0", "invalid_value", "limit"),
        ("/input_items?limit=101", "invalid_value", "limit"),
        ("/input_items?order=up", "invalid_value", "order"),
        ("/input_items?after=nobody", "invalid_value", "after"),
        ("/input_items?before=nobody", "unknown_parameter", "before"),
    ],
)
async def test_an_invalid_query_parameter_is_refused_by_name(server: Server, query: str, code: str, param: str) -> None:
    server.answers("Fine.")
    body = await respond(server)
    await assert_error(await server.client.get(f"{URL}/{body['id']}{query}"), 400, code, param)


async def test_requested_logprobs_are_stored(server: Server) -> None:
    tokens = server.encode("Fine.")
    server.engine.answer = lambda submit: [
        Output(submit.request_id, tokens, "stop", logprobs=[(-0.5, []) for _ in tokens])
    ]
    include = ["message.output_text.logprobs"]
    body = await respond(server, include=include)
    assert await body_of(await server.client.get(f"{URL}/{body['id']}?include={include[0]}")) == body


async def test_an_item_that_is_not_stored_is_a_404(server: Server) -> None:
    server.answers("Fine.")
    body = await respond(server)
    reference = {"type": "item_reference", "id": body["output"][0]["id"]}
    await respond(server, [reference, USER])
    await server.client.delete(f"{URL}/{body['id']}")
    await respond(server, [reference, USER])  # the response that referred to the item stores it, too
    others = {"type": "item_reference", "id": "msg_of_nobody"}
    await assert_error(await server.post(ask([others])), 404, None, "input", "msg_of_nobody")


async def test_an_item_that_was_sent_back_is_found_as_long_as_a_response_holds_it(thinking: Server) -> None:
    thinking.answers(f"<think>\nRome.\n</think>\n\nI look. {CALL.replace('weather', 'home__weather')}")
    body = await respond(thinking, tools=[HOME])
    thinking.answers("Fine.")
    await respond(thinking, [USER, *body["output"], USER])
    await thinking.client.delete(f"{URL}/{body['id']}")
    references = [{"type": "item_reference", "id": item["id"]} for item in body["output"]]
    await respond(thinking, [USER, *references, USER])
    whole, referred = thinking.engine.submitted[-2:]
    assert whole.tokens == referred.tokens


async def test_a_changed_item_cannot_be_referenced_by_the_id_of_the_original(server: Server) -> None:
    server.answers("Fine.")
    body = await respond(server)
    [said] = body["output"]
    changed = said | {"content": [said["content"][0] | {"text": "Bad."}]}
    second = await respond(server, [changed, USER])
    listed = await body_of(await server.client.get(f"{URL}/{second['id']}/input_items?order=asc"))
    assert listed["data"][0] == changed
    await server.client.delete(f"{URL}/{body['id']}")
    await assert_error(await server.post(ask([{"id": said["id"]}])), 404, None, "input", said["id"])


async def test_an_id_made_by_a_client_cannot_be_referenced(server: Server) -> None:
    """Otherwise a client that guesses the id could read the items of another."""
    server.answers("Fine.")
    await respond(server, [USER | {"id": "msg_1"}])
    await assert_error(await server.post(ask([{"id": "msg_1"}])), 404, None, "input", "msg_1")


def kept_item(name: str, size: int = 0, *, is_ours: bool = True) -> KeptItem:
    return KeptItem(name, b"x" * size, is_ours)


def test_the_oldest_response_is_dropped_first_and_its_items_once_unused() -> None:
    kept = KeptResponses(max_responses=2)
    said, more, new = kept_item("said"), kept_item("more"), kept_item("new")
    kept.keep("", "1", KeptResponse(b"", (said,), (more,)))
    kept.keep("", "2", KeptResponse(b"", (said, more), (new,)))
    kept.keep("", "3", KeptResponse(b"", (), ()))
    assert [kept.find("", each) is None for each in "123"] == [True, False, False]
    assert kept.find_item("", "said") is said
    kept.keep("", "4", KeptResponse(b"", (), ()))
    assert [kept.find_item("", each) for each in ("said", "more", "new")] == [None, None, None]


def test_a_response_that_is_too_large_is_not_stored_and_drops_no_other() -> None:
    kept = KeptResponses(max_bytes=10_000)
    said = kept_item("said", 6_000)
    kept.keep("", "1", KeptResponse(b"", (), ()))
    kept.keep("", "2", KeptResponse(b"", (), (said,)))
    before = kept.num_bytes
    kept.keep("", "3", KeptResponse(b"x" * 10_001, (), ()))
    kept.keep("", "4", KeptResponse(b"", (kept_item("long", 10_001),), ()))
    kept.keep("", "5", KeptResponse(b"x" * 4_000, (said,), ()))  # too large with the item that it shares
    assert [each for each in "12345" if kept.find("", each)] == ["1", "2"]
    assert kept.num_bytes == before


ITEMS = st.lists(st.integers(0, 9), max_size=5)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), ITEMS, ITEMS, st.booleans()), max_size=30),
    max_responses=st.integers(1, 6),
    max_bytes=st.integers(0, 6000),
)
def test_the_bounds_hold_and_only_items_of_stored_responses_are_held(
    steps: list[tuple[int, list[int], list[int], bool]], max_responses: int, max_bytes: int
) -> None:
    items = [kept_item(str(number), 100 * number, is_ours=number % 2 == 0) for number in range(10)]
    kept = KeptResponses(max_responses=max_responses, max_bytes=max_bytes)
    for number, (deleted, before, after, deletes) in enumerate(steps):
        num_before = len(kept)
        if deletes:
            kept.delete("", str(deleted))
        else:
            response = KeptResponse(b"x" * 50, tuple(items[i] for i in before), tuple(items[i] for i in after))
            kept.keep("", str(number), response)
            assert kept.find("", str(number)) or len(kept) == num_before, "a response that is not stored drops no other"
        held = {item for response in kept._responses.values() for item in response.conversation}
        assert len(kept) <= max_responses
        assert kept.num_bytes <= max_bytes
        assert kept.num_bytes >= sum(len(item.data) for item in held)
        assert set(kept._uses) == held
        assert {item for item in items if kept.find_item("", item.id)} == {item for item in held if item.is_ours}
    for number in range(len(steps)):
        kept.delete("", str(number))
    assert (len(kept), kept.num_bytes, kept._uses, kept._items) == (0, 0, {}, {})


async def test_the_store_holds_max_responses(server: Server) -> None:
    server.answers("")
    first = await respond(server)
    second = await respond(server)
    for _ in range(MAX_RESPONSES - 1):
        assert (await server.post(ask())).status_code == 200
    await assert_error(await server.client.get(f"{URL}/{first['id']}"), 404, None, None)
    assert (await server.client.get(f"{URL}/{second['id']}")).status_code == 200


# Too long for the context


async def test_truncation_auto_drops_the_oldest_turns(server: Server) -> None:
    server.answers("Fine.")
    turns: list[dict[str, Any]] = []
    for number in range(12):
        turns += [{"role": "user", "content": f"{number} " + "word " * 60}, {"role": "assistant", "content": "Fine."}]
    turns.append({"role": "user", "content": "Last."})
    await assert_error(await server.post(ask(turns)), 400, "context_length_exceeded", "input")
    fields = {"instructions": "Be brief.", "max_output_tokens": 50}
    body = await respond(server, turns, truncation="auto", **fields)
    [submit] = server.engine.submitted
    brief = {"role": "system", "content": "Be brief."}
    prompts = [await chat_prompt(server, [brief, *turns[first:]]) for first in range(0, len(turns), 2)]
    longest = next(prompt for prompt in prompts if len(prompt) + 50 <= INFO.ctx_len)
    assert submit.tokens == longest
    assert len(longest) > INFO.ctx_len - 50 - 80
    listed = await body_of(await server.client.get(f"{URL}/{body['id']}/input_items?limit=100"))
    assert len(listed["data"]) == len(turns), "dropped turns are still part of the conversation"


async def test_max_output_tokens_beyond_the_context_leave_room_for_the_conversation(server: Server) -> None:
    server.answers("Fine.")
    turns = [{"role": "user", "content": "word " * 60}, SAID, {"role": "user", "content": "word " * 60}]
    await respond(server, turns, truncation="auto", max_output_tokens=5000)
    await respond(server, turns)
    cut, whole = server.engine.submitted
    assert cut.tokens == whole.tokens
    await respond(server, [*turns, SAID, *turns], truncation="auto", max_output_tokens=5000)
    assert len(server.engine.submitted[-1].tokens) <= INFO.ctx_len // 2


async def test_a_conversation_that_fits_is_not_truncated(server: Server) -> None:
    server.answers("Fine.")
    turns = [USER, {"role": "assistant", "content": "Hi."}, USER]
    for truncation in ("auto", "disabled"):
        await respond(server, turns, truncation=truncation)
    first, second = server.engine.submitted
    assert first.tokens == second.tokens


@pytest.mark.parametrize("turns", [1, 3])
async def test_a_last_turn_that_does_not_fit_is_refused(server: Server, turns: int) -> None:
    items = [{"role": "user", "content": "word " * 600}] * turns
    refused = await server.post(ask(items, truncation="auto"))
    await assert_error(refused, 400, "context_length_exceeded", "input", "512")


# Counting tokens


async def count(server: Server, **fields: Any) -> Response:
    return await server.client.post(f"{URL}/input_tokens", json=fields)


async def counted(server: Server, **fields: Any) -> int:
    response = await count(server, **fields)
    body = await body_of(response)
    assert response.status_code == 200, body
    wire.InputTokens.model_validate(body)
    return InputTokenCountResponse.model_validate(body, strict=True).input_tokens


async def test_counted_tokens_are_the_input_tokens_of_a_response(thinking: Server) -> None:
    thinking.answers("Fine.")
    first = await respond(thinking, "Hello", store=True)
    fields: dict[str, Any] = {
        "model": MODEL,
        "input": [THOUGHTS, CALLS, RESULT, USER],
        "instructions": "Be brief.",
        "previous_response_id": first["id"],
        "tools": [WEATHER, HOME],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "none"},
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    }
    assert (
        await counted(thinking, **fields)
        == (await respond(thinking, fields.pop("input"), **fields))["usage"]["input_tokens"]
    )
    assert len(thinking.engine.submitted) == 2, "counting generates nothing"


async def test_counted_tokens_may_exceed_the_context_unless_truncation_is_auto(server: Server) -> None:
    turns = [{"role": "user", "content": "word " * 60}] * 12
    assert await counted(server, input=turns) > INFO.ctx_len
    server.answers()
    cut = await respond(server, turns, truncation="auto")
    assert await counted(server, input=turns, truncation="auto") == cut["usage"]["input_tokens"]


async def test_invalid_count_requests_are_refused_by_name(server: Server) -> None:
    for fields, status, code, param in (
        ({}, 400, "missing_required_parameter", "input"),
        ({"input": "Hi.", "model": "other"}, 404, "model_not_found", "model"),
        ({"input": "Hi.", "personality": "friendly"}, 400, "unsupported_parameter", "personality"),
        ({"input": "Hi.", "conversation": "conv_1"}, 400, "unsupported_parameter", "conversation"),
        ({"input": "Hi.", "stream": True}, 400, "unknown_parameter", "stream"),
        ({"input": "Hi.", "previous_response_id": "r"}, 400, "previous_response_not_found", "previous_response_id"),
        ({"input": [{"id": "msg_1"}]}, 404, None, "input"),
    ):
        await assert_error(await count(server, **fields), status, code, param)


def test_every_field_of_openais_count_is_read_or_refused() -> None:
    assert set(get_type_hints(InputTokenCountParams)) <= {*InputTokensRequest.model_fields, *UNSERVED_IN_COUNTS}


# Field by field

SCHEMA = {"type": "json_schema", "name": "x", "schema": {"const": 1}}
SERVED: dict[str, list[Any]] = {
    "include": [["message.output_text.logprobs"]],
    "input": ["Hi.", [USER]],
    "instructions": ["Be brief."],
    "max_output_tokens": [1, 16, 5000],
    "metadata": [{"team": "blue"}],
    "model": [MODEL, "an-alias"],
    "parallel_tool_calls": [True, False],
    "reasoning": [{"effort": "low"}, {"max_tokens": 100}],
    "store": [True, False],
    "stream": [True, False],
    "temperature": [0, 2.0],
    "text": [{"format": SCHEMA}, {"format": {"type": "json_object"}}],
    "tools": [[WEATHER]],
    "top_p": [0.5],
    "truncation": ["auto", "disabled"],
}
ACCEPTED: dict[str, list[Any]] = {
    "client_metadata": [{"x-codex-installation-id": "u"}],
    "access_programs": [{"cyber": "standard"}],
    "background": [False],
    "background_options": [{}, {"completion_window": "soonest"}],
    "context_management": [[]],
    "image": [{}, {"context_compression": "auto"}, {"context_compression": "disabled"}],
    "include": [[], ["web_search_call.results", "message.input_image.image_url"], ["reasoning.encrypted_content"]],
    "max_tool_calls": [1],
    "n": [1],
    "prompt_cache_key": ["k", "k" * 64],
    "prompt_cache_options": [{}, {"mode": "explicit", "ttl": "30m", "prewarm": False}],
    "prompt_cache_retention": ["in_memory", "24h"],
    "reasoning": [{}, {"summary": "auto", "generate_summary": None, "mode": "standard", "context": "auto"}],
    "safety_identifier": ["s", "s" * 128],
    "service_tier": ["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"],
    "text": [{}, {"format": None, "verbosity": "medium"}, {"format": {"type": "text"}}, {"verbosity": "low"}],
    "tool_choice": ["auto", "none"],
    "tools": [[], [WEATHER | {"allowed_callers": ["direct"], "defer_loading": True, "async": False}], [SEARCH]],
    "top_logprobs": [0],
    "user": ["me", "m" * 512],
}
REFUSED: dict[str, list[tuple[Any, str, str]]] = {
    "access_programs": [({"cyber": "daybreak_red"}, "access_programs", "unsupported_parameter")],
    "background": [(True, "background", "unsupported_parameter")],
    "background_options": [({"completion_window": "2h"}, "background_options", "unsupported_parameter")],
    "client_metadata": [({"x": 3}, "client_metadata", "invalid_value")],
    "context_management": [([{"type": "compaction"}], "context_management", "unsupported_parameter")],
    "conversation": [("conv_1", "conversation", "unsupported_parameter")],
    "image": [({"context_compression": "enabled"}, "image", "unsupported_parameter")],
    "include": [(["everything"], "include[0]", "invalid_value")],
    "input": [
        ([], "input", "missing_required_parameter"),
        ([{"type": "reasoning", "summary": []}], "input", "missing_required_parameter"),
        (3, "input", "invalid_value"),
        ([3], "input[0]", "invalid_value"),
        ([{"type": "web_search_call", "id": "ws_1"}], "input", "missing_required_parameter"),
        ([{"type": "telepathy_call", "id": "t_1"}], "input[0]", "invalid_value"),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[0].content[0]",
            "invalid_value",
        ),
        ([{"role": "user", "content": [{"type": "input_file"}]}], "input[0].content[0]", "invalid_value"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "input[0].content[0]", "invalid_value"),
        ([{"role": "user", "content": [{"type": "output_text", "text": "x"}]}], "input[0]", "invalid_value"),
        ([{"role": "tool", "content": "x"}], "input[0].role", "invalid_value"),
        ([{"role": "user"}], "input[0]", "invalid_value"),
        ([{"role": "user", "content": None}], "input[0]", "invalid_value"),
        ([CALLS | {"arguments": 3}], "input[0].arguments", "invalid_value"),
        ([CALLS | {"name": None}], "input[0].name", "invalid_value"),
        ([CALLS | {"namespace": "x y"}], "input[0].namespace", "invalid_value"),
        ([CALLS | {"namespace": "x" * 120}], "input[0]", "invalid_value"),
        ([USER | {"metadata": "x"}], "input[0].metadata", "invalid_value"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id", "missing_required_parameter"),
        ([RESULT | {"output": [{"type": "telepathy"}]}], "input[0].output[0]", "invalid_value"),
    ],
    "instructions": [([USER], "instructions", "invalid_value")],
    "max_output_tokens": [(0, "max_output_tokens", "invalid_value")],
    "max_tool_calls": [(0, "max_tool_calls", "invalid_value")],
    "metadata": [({"x": 3}, "metadata", "invalid_value"), ({"x": "y" * 513}, "metadata", "invalid_value")],
    "model": [(3, "model", "invalid_value")],
    "moderation": [({"model": "x"}, "moderation", "unsupported_parameter")],
    "n": [(2, "n", "invalid_value")],
    "previous_response_id": [("resp_1", "previous_response_id", "previous_response_not_found")],
    "prompt": [({"id": "x"}, "prompt", "unsupported_parameter")],
    "prompt_cache_key": [("k" * 65, "prompt_cache_key", "invalid_value")],
    "prompt_cache_options": [
        ({"prewarm": True}, "prompt_cache_options.prewarm", "invalid_value"),
        ({"comparison_response_id": "x"}, "prompt_cache_options.comparison_response_id", "invalid_value"),
    ],
    "reasoning": [
        ({"effort": "huge"}, "reasoning.effort", "invalid_value"),
        ({"summary": "long"}, "reasoning.summary", "invalid_value"),
        ({"mode": "pro"}, "reasoning.mode", "invalid_value"),
        ({"context": "all_turns"}, "reasoning.context", "invalid_value"),
    ],
    "safety_identifier": [("s" * 129, "safety_identifier", "invalid_value")],
    "temperature": [(2.5, "temperature", "invalid_value")],
    "text": [
        ({"verbosity": "none"}, "text.verbosity", "invalid_value"),
        ({"format": {"type": "xml"}}, "text.format", "invalid_value"),
        ({"format": {"type": "json_schema", "name": "x"}}, "text.format.schema", "missing_required_parameter"),
        ({"format": SCHEMA | {"name": "a b"}}, "text.format.name", "invalid_value"),
    ],
    "tool_choice": [
        ("required", "tool_choice", ""),
        ({"type": "web_search_preview"}, "tool_choice", "invalid_value"),
        ({"type": "function"}, "tool_choice.name", "missing_required_parameter"),
    ],
    "tools": [
        ([{"type": "telepathy"}], "tools[0]", "invalid_value"),
        ([{"type": "custom"}], "tools[0].name", "missing_required_parameter"),
        ([{"type": "function"}], "tools[0].name", "missing_required_parameter"),
        ([CLOCK | {"name": "x" * 129}], "tools[0].name", "invalid_value"),
        ([CLOCK] * 1025, "tools", "invalid_value"),
        ([{"type": "namespace", "tools": []}], "tools[0].name", "missing_required_parameter"),
        ([HOME | {"tools": [{"type": "web_search"}]}], "tools[0].tools[0]", "invalid_value"),
        ([HOME | {"tools": [WEATHER] * 1025}], "tools", "invalid_value"),
        ([HOME | {"name": "x" * 120}], "tools[0]", "invalid_value"),
        ([HOME, HOME], "tools", "invalid_value"),
        ([HOME, CLOCK | {"name": "home__clock"}], "tools", "invalid_value"),
        ([WEATHER, WEATHER], "tools", "invalid_value"),
        ([WEATHER | {"async": True}], "tools[0].async", "invalid_value"),
        ([WEATHER | {"allowed_callers": ["programmatic"]}], "tools[0].allowed_callers[0]", "invalid_value"),
    ],
    "top_logprobs": [(2, "top_logprobs", ""), (21, "top_logprobs", "invalid_value")],
    "truncation": [("some", "truncation", "invalid_value")],
    "user": [("u" * 513, "user", "invalid_value")],
    "messages": [([USER], "messages", "unknown_parameter")],
    "max_tokens": [(3, "max_tokens", "unknown_parameter")],
}
TOGETHER: dict[str, Any] = {
    "stream_options": {"stream": True, "stream_options": {"include_obfuscation": False}},
    "top_logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "tool_choice": {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
}


def test_every_field_of_openai_and_of_ours_is_in_a_table() -> None:
    tables = SERVED.keys() | ACCEPTED.keys() | REFUSED.keys() | TOGETHER.keys()
    openais = set(get_type_hints(ResponseCreateParamsBase)) | {"stream"}
    assert openais <= tables
    assert openais == {name for name in openais if name in ResponseRequest.model_fields or name in UNSERVED}
    assert set(UNSERVED) <= openais
    extensions = set(GenerationRequest.model_fields) | set(ThoughtFields.model_fields)
    extensions |= {"chat_template_kwargs", "enable_thinking", "client_metadata"}
    assert set(ResponseRequest.model_fields) - openais <= extensions


def each(table: dict[str, list[Any]]) -> Iterator[Any]:
    for name, values in table.items():
        for value in values:
            yield pytest.param(name, value, id=f"{name}-{json.dumps(value)[:40]}")


@pytest.mark.parametrize(("name", "value"), [*each(SERVED), *each(ACCEPTED)])
async def test_a_valid_field_is_accepted(server: Server, name: str, value: Any) -> None:
    tokens = server.encode("1")
    server.engine.answer = lambda submit: [
        Output(submit.request_id, tokens, "stop", logprobs=[(-0.5, [])] if submit.logprobs is not None else [])
    ]
    response = await server.post(ask() | {name: value})
    assert response.status_code == 200, await response.get_data(as_text=True)


@pytest.mark.parametrize("name", TOGETHER)
async def test_fields_that_need_each_other_are_accepted_together(server: Server, name: str) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "stop")]
    assert (await server.post(ask(**TOGETHER[name]))).status_code == 200


@pytest.mark.parametrize("name", sorted({*ResponseRequest.model_fields, *UNSERVED} - {"model", "input"}))
async def test_null_is_accepted_for_optional_fields(server: Server, name: str) -> None:
    server.answers("Fine.")
    assert (await server.post(ask() | {name: None})).status_code == 200


@pytest.mark.parametrize(("name", "case"), list(each(REFUSED)))
async def test_an_invalid_field_is_refused_by_name(server: Server, name: str, case: tuple[Any, str, str]) -> None:
    value, param, code = case
    await assert_error(await server.post(ask() | {name: value}), 400, code or None, param)
    assert server.engine.submitted == []


@pytest.mark.parametrize("summary", ["auto", "concise", "detailed"])
async def test_reasoning_is_returned_as_text_instead_of_a_summary_or_encrypted(thinking: Server, summary: str) -> None:
    thinking.answers("<think>\nHm.\n</think>\n\nFine.")
    fields = {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": summary}, "store": False}
    body = await respond(thinking, **fields)
    [thought, said] = body["output"]
    assert (thought["content"][0]["text"], thought["summary"], thought.get("encrypted_content")) == ("Hm.", [], None)
    assert body["reasoning"]["summary"] is None
    await respond(thinking, [USER, thought | {"encrypted_content": None}, said, USER], **fields)
    thought_of = {"role": "assistant", "content": "Fine.", "reasoning_content": "Hm."}
    assert thinking.engine.submitted[-1].tokens == await chat_prompt(thinking, [USER, thought_of, USER])


async def test_an_error_message_has_the_field_names_of_the_responses_api(server: Server) -> None:
    both = await server.post(ask(text={"format": SCHEMA}, json_schema={}))
    await assert_error(both, 400, "invalid_value", "json_schema", "'text.format' and 'json_schema'")


async def test_an_unknown_model_is_a_404(server: Server) -> None:
    await assert_error(await server.post(ask(model="other")), 404, "model_not_found", "model")


# Generated requests

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "user", "auto", "function", "message", "<|im_end|>", MODEL])
    | st.sampled_from(["custom", "web_search", "input_text", "input_image", "allowed_tools", "grammar", "regex"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "id", "call_id", "output", "format"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ResponseRequest.model_fields, *UNSERVED]) | st.text(max_size=6)
TYPES = [
    *("message", "function_call", "function_call_output", "reasoning", "item_reference"),
    *("custom_tool_call", "custom_tool_call_output", "web_search_call", "shell_call", "shell_call_output"),
]
INPUTS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES)},
        optional={
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": st.text(max_size=8) | VALUES,
            "id": st.text(max_size=4),
            "call_id": st.text(max_size=4),
            "name": st.just("f") | VALUES,
            "arguments": st.just("{}") | VALUES,
            "input": st.text(max_size=4) | VALUES,
            "action": VALUES,
            "output": st.text(max_size=4) | VALUES,
            "summary": st.just([]) | VALUES,
        },
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


async def assert_response_or_refusal(server: Server, body: dict[str, Any]) -> None:
    response = await server.post_raw(json.dumps(body).encode())
    data = bytes(await response.get_data(as_text=False))
    if response.status_code == 200 and response.headers["Content-Type"].startswith("text/event-stream"):
        assert b"event: response.completed" in data
    elif response.status_code == 200:
        wire.Response.model_validate_json(data)
    else:
        assert 400 <= response.status_code < 500, data
        error = orjson.loads(data)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    assert server.engine.num_active == 0


@settings(max_examples=300)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=3))
async def test_any_value_in_any_field_is_answered_or_refused(
    answering: Callable[[], Server], fields: dict[str, Any]
) -> None:
    await assert_response_or_refusal(answering(), ask(**fields))


@given(items=INPUTS, stream=st.booleans())
async def test_any_input_is_answered_or_refused(
    answering: Callable[[], Server], items: list[dict[str, Any]], stream: bool
) -> None:
    await assert_response_or_refusal(answering(), ask(items, stream=stream))
