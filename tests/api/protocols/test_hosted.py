"""What a text model cannot have: hosted tools are left out, and content that is not text becomes a short text."""

import logging
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import orjson
import pytest
from anthropic.types.beta import BetaContentBlockParam, BetaToolUnionParam
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionContentPartParam
from openai.types.responses import ResponseInputContentParam, ResponseInputItemParam, ToolParam
from pydantic import BaseModel

from api.protocols.hosted import MEDIA, is_hosted, omitted
from api.protocols.messages.media import HISTORY
from api.protocols.responses.hosted_items import ITEM_TYPES, as_function_item
from api.protocols.responses.input import TYPES
from api.protocols.warnings import HEADER, MAX_CHARACTERS, header_value
from api.text.tokenizer import Tokenizer
from tests.api.fakes import MODEL, Server

Body = dict[str, Any]
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNTS = {RESPONSES: f"{RESPONSES}/input_tokens", MESSAGES: f"{MESSAGES}/count_tokens", CHAT: "/apply-template"}
PROTOCOLS = [CHAT, RESPONSES, MESSAGES]
SCHEMA: Body = {"type": "object", "properties": {}}
CLOCKS: dict[str, Body] = {
    CHAT: {"type": "function", "function": {"name": "clock", "parameters": SCHEMA}},
    RESPONSES: {"type": "function", "name": "clock", "parameters": SCHEMA},
    MESSAGES: {"name": "clock", "input_schema": SCHEMA},
}
SEARCH: Body = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
REQUIRED: dict[str, Any] = {CHAT: "required", RESPONSES: "required", MESSAGES: {"type": "any"}}
PNG: Body = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
URL = f"data:image/png;base64,{PNG['data']}"
IMAGES: dict[str, Body] = {
    CHAT: {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
    RESPONSES: {"type": "input_image", "image_url": URL, "detail": "auto"},
    MESSAGES: {"type": "image", "source": PNG, "cache_control": {"type": "ephemeral"}},
}
TEXT_TYPES = {CHAT: "text", RESPONSES: "input_text", MESSAGES: "text"}


@pytest.fixture(params=PROTOCOLS)
def server(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer, url=request.param)
    server.answers()
    return server


def user(content: Any = "Hi") -> Body:
    return {"role": "user", "content": content}


def body(url: str, turns: list[Body] | None = None, **fields: Any) -> Body:
    turns = turns or [user()]
    fields |= {"input": turns} if url == RESPONSES else {"messages": turns}
    return {"model": MODEL} | ({"max_tokens": 20} if url == MESSAGES else {}) | fields


async def post(server: Server, request: Body, status: int = 200) -> tuple[Any, str | None]:
    """The answer's body and its warning."""
    response = await server.post(request)
    found = orjson.loads(await response.get_data(as_text=False))
    assert response.status_code == status, found
    return found, response.headers.get(HEADER)


def prompt(server: Server) -> str:
    return server.tokenizer.text(server.engine.submitted[-1].tokens)


# The types of the SDKs


def types_of(union: Any) -> Iterator[str]:
    """The values of `type` in the members of a union of the SDKs' types."""
    for member in get_args(union) if get_origin(union) not in (None, list) else [union]:
        if get_args(member):
            yield from types_of(member)
        elif isinstance(member, type) and issubclass(member, BaseModel):
            yield from literals(member.model_fields["type"].annotation)
        else:
            yield from literals(get_type_hints(member).get("type"))


def literals(hint: Any) -> Iterator[str]:
    """The values of a literal type, which may be marked as required."""
    for each in [hint, *get_args(hint)]:
        if get_origin(each) is Literal:
            yield from get_args(each)


def test_every_tool_of_the_sdks_is_served_or_left_out() -> None:
    found = {*types_of(ToolParam), *types_of(BetaToolUnionParam)}
    assert {kind for kind in found if not is_hosted({"type": kind})} == {"function", "custom", "namespace"}
    newer = ["web_search_20991231", "web_search_2030_01_01", "telescope_20991231"]
    assert all(is_hosted({"type": kind}) for kind in newer)
    assert not any(is_hosted(tool) for tool in [{}, {"type": 3}, {"type": "searching"}, {"type": "web_search\n"}, None])


def test_every_item_of_the_sdk_is_known() -> None:
    assert set(types_of(ResponseInputItemParam)) - {*TYPES, *ITEM_TYPES} == set()


def test_every_block_and_part_of_the_sdks_is_known() -> None:
    served = {"text", "tool_use", "tool_result", "thinking", "redacted_thinking"}
    refused = {"tool_addition", "tool_removal"}  # they change the tools
    assert set(types_of(BetaContentBlockParam)) - {*served, *MEDIA, *HISTORY} == refused
    parts = {*types_of(ResponseInputContentParam), *types_of(ChatCompletionContentPartParam)}
    assert parts - {*MEDIA} == {"text", "input_text"}


# The header


@given(warnings=st.lists(st.text(), min_size=1))
def test_a_warning_is_safe_in_a_header(warnings: list[str]) -> None:
    value = header_value(warnings)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= MAX_CHARACTERS
    assert len(value) == min(MAX_CHARACTERS, len("; ".join(warnings)))


@pytest.mark.parametrize("url", PROTOCOLS)
async def test_all_answers_and_the_log_have_the_warning(
    tokenizer: Tokenizer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tokenizer, url=url, cors_origins=("http://a.b",))
    server.answers()
    caplog.set_level(logging.INFO, "cortex.api")
    asked = body(url, tools=[SEARCH, CLOCKS[url], {"type": "mcp"}, SEARCH])
    expected = "tools left out: web_search_20250305, mcp"
    response = await server.post(asked, {"Origin": "http://a.b"})
    assert response.headers[HEADER] == expected
    assert HEADER in response.headers["Access-Control-Expose-Headers"]
    assert [record.getMessage() for record in caplog.records if expected in record.getMessage()] == [
        f"request {response.headers['x-request-id']}: {expected}"
    ]
    async with server.stream(asked) as stream:
        await stream.rest()
        assert stream.headers[HEADER] == expected
    server.url = COUNTS[url]
    asked.pop("max_tokens", None)
    assert (await post(server, asked))[1] == expected
    server.url = url
    assert (await post(server, body(url, tools=[CLOCKS[url]])))[1] is None


# Tools and choices


async def test_hosted_tools_change_nothing(server: Server) -> None:
    url = server.url
    hosted: list[Body] = [
        SEARCH,
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "local_shell"},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "mcp", "server_label": "x", "server_url": "https://x.y", "require_approval": "never"},
    ]
    await post(server, body(url, tools=[CLOCKS[url]]))
    await post(server, body(url, tools=[*hosted, CLOCKS[url]]))
    await post(server, body(url))
    found, _ = await post(server, body(url, tools=hosted))
    first, second, third, fourth = server.engine.submitted
    assert (first.tokens, first.grammar) == (second.tokens, second.grammar)
    assert (third.tokens, third.grammar) == (fourth.tokens, fourth.grammar)
    assert third.grammar == ""
    if url == RESPONSES:
        assert found["tools"] == []


CHOSEN: list[tuple[str, Any, str]] = [
    *[
        (url, REQUIRED[url], "none of these tools exists on this server: web_search_20250305, web_search")
        for url in PROTOCOLS
    ],
    (CHAT, {"type": "web_search"}, "'web_search' does not exist"),
    (CHAT, {"type": "function", "function": {"name": "web_search"}}, "'web_search' does not exist"),
    (RESPONSES, {"type": "web_search_preview"}, "'web_search_preview' does not exist"),
    (RESPONSES, {"type": "mcp", "server_label": "x"}, "'mcp' does not exist"),
    (RESPONSES, {"type": "shell"}, "'shell' does not exist"),
    (
        RESPONSES,
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
        "none of these tools",
    ),
    (MESSAGES, {"type": "tool", "name": "web_search"}, "'web_search' does not exist"),
]


@pytest.mark.parametrize(("url", "choice", "part"), CHOSEN, ids=str)
async def test_a_tool_that_was_left_out_cannot_be_chosen(
    tokenizer: Tokenizer, url: str, choice: Any, part: str
) -> None:
    server = Server(tokenizer, url=url)
    found, _ = await post(server, body(url, tools=[SEARCH], tool_choice=choice), 400)
    assert part in found["error"]["message"]
    if url != MESSAGES:
        assert found["error"]["param"] == "tool_choice"
    assert server.engine.submitted == []


async def test_allowed_tools_without_one_that_exists_allow_no_call(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=RESPONSES)
    server.answers()
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    await post(server, body(RESPONSES, tools=[CLOCKS[RESPONSES], SEARCH], tool_choice=choice))
    assert server.engine.submitted[0].grammar == ""


# Content that is not text


def part(url: str, text: str) -> Body:
    return {"type": TEXT_TYPES[url], "text": text}


def with_result(url: str, result: Any) -> list[Body]:
    """A conversation that ends with the result of a call."""
    if url == CHAT:
        calls = [{"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]
        told = {"role": "tool", "tool_call_id": "call_1", "content": result}
        return [user(), {"role": "assistant", "content": None, "tool_calls": calls}, told]
    if url == RESPONSES:
        call = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"}
        return [user(), call, {"type": "function_call_output", "call_id": "call_1", "output": result}]
    use = {"type": "tool_use", "id": "call_1", "name": "clock", "input": {}}
    told = {"type": "tool_result", "tool_use_id": "call_1", "content": result}
    return [user(), {"role": "assistant", "content": [use]}, user([told])]


async def test_an_image_in_a_result_becomes_a_text(server: Server) -> None:
    url = server.url
    _, warning = await post(server, body(url, with_result(url, [part(url, "Seen:"), IMAGES[url]])))
    assert warning == "content left out: image"
    _, warning = await post(server, body(url, with_result(url, [part(url, "Seen:"), part(url, "[image omitted]")])))
    assert warning is None
    first, second = server.engine.submitted
    assert first.tokens == second.tokens


async def test_an_image_in_an_older_message_becomes_a_text(server: Server) -> None:
    url = server.url
    said = {"role": "assistant", "content": "A cat."}
    _, warning = await post(server, body(url, [user([IMAGES[url], part(url, "What is it?")]), said, user()]))
    assert warning == "content left out: image"
    assert "[image omitted]\nWhat is it?" in prompt(server)


async def test_an_image_in_the_newest_user_message_is_refused(server: Server) -> None:
    url = server.url
    newest = user([part(url, "What is it?"), IMAGES[url]])
    older = with_result(url, [IMAGES[url]])
    path = f"{'input' if url == RESPONSES else 'messages'}[{len(older)}].content{'' if url == CHAT else '[1]'}"
    for turns in ([*older, newest], [*older, newest, {"role": "assistant", "content": "A"}]):
        found, warning = await post(server, body(url, turns), 400)
        assert path in found["error"]["message"]
        assert f"type '{IMAGES[url]['type']}'" in found["error"]["message"]
        assert warning is None
    assert server.engine.submitted == []


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("url", PROTOCOLS)
async def test_all_content_that_is_not_text_becomes_a_text(tokenizer: Tokenizer, url: str, kind: str) -> None:
    server = Server(tokenizer, url=url)
    server.answers()
    _, warning = await post(server, body(url, [user([{"type": kind, "x": 1}]), user()]))
    assert warning == f"content left out: {MEDIA[kind]}"
    assert omitted(kind) in prompt(server)
    await post(server, body(url, [user([{"type": kind, "x": 1}])]), 400)


async def test_the_responses_that_are_stored_contain_the_text(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=RESPONSES)
    server.answers()
    first, _ = await post(server, body(RESPONSES, with_result(RESPONSES, [IMAGES[RESPONSES]])))
    listed = await server.client.get(f"{RESPONSES}/{first['id']}/input_items")
    items = orjson.loads(await listed.get_data(as_text=False))["data"]
    assert items[0]["output"] == [{"type": "input_text", "text": "[image omitted]"}]
    _, warning = await post(server, body(RESPONSES, previous_response_id=first["id"]))
    assert warning is None
    assert "[image omitted]" in prompt(server)


async def test_texts_in_documents_and_search_results_are_read(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=MESSAGES)
    server.answers()
    plain = {"type": "text", "media_type": "text/plain", "data": "The sky is green."}
    nested = {"type": "content", "content": [part(MESSAGES, "So is the sea.")]}
    found = {"type": "search_result", "source": "a.b", "title": "Color", "content": [part(MESSAGES, "Snow is red.")]}
    blocks: list[Body] = [
        {"type": "document", "source": plain, "title": "Colors", "context": "A book."},
        {"type": "document", "source": nested, "citations": {"enabled": True}},
        found,
    ]
    for turns in ([user(blocks)], with_result(MESSAGES, blocks)):
        _, warning = await post(server, body(MESSAGES, turns))
        assert warning is None
        assert "Colors\nA book.\nThe sky is green.\nSo is the sea.\nColor\na.b\nSnow is red." in prompt(server)
    _, warning = await post(server, body(MESSAGES, with_result(MESSAGES, [blocks[0] | {"source": PNG}])))
    assert warning == "content left out: document"


async def test_blocks_beside_the_results_of_tools_belong_to_them(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=MESSAGES)
    server.answers()
    [*older, results] = with_result(MESSAGES, "Read.")
    results["content"].append({"type": "document", "source": PNG})
    _, warning = await post(server, body(MESSAGES, [*older, results]))
    assert warning == "content left out: document"


# Histories


async def test_items_of_hosted_tools_become_calls_or_nothing(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=RESPONSES)
    server.answers()
    said = {"role": "assistant", "content": "Done."}
    shell = {"type": "exec", "command": ["ls", "-a"], "env": {}}
    items: list[Body] = [
        user(),
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA", "content": None},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "local_shell_call", "id": None, "call_id": "c1", "status": "completed", "action": shell},
        {"type": "local_shell_call_output", "id": "c1", "output": "a.py"},
        {"type": "shell_call", "call_id": "c2", "action": {"commands": ["pwd"]}},
        {
            "type": "shell_call_output",
            "call_id": "c2",
            "output": [{"stdout": "/home", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
        },
        {"type": "computer_call", "id": "cu", "call_id": "c3", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "c3", "output": {"type": "computer_screenshot", "image_url": URL}},
        {"type": "mcp_list_tools", "id": "m1", "server_label": "x", "tools": []},
        {"type": "image_generation_call", "id": "i1", "status": "completed", "result": "iVBORw0KGgo="},
        said,
        user("Go on."),
    ]
    found, warning = await post(server, body(RESPONSES, items))
    left_out = "items left out: web_search_call, mcp_list_tools, image_generation_call"
    assert warning == f"content left out: image; {left_out}"
    calls = [
        ("c1", "local_shell", '{"type": "exec", "command": ["ls", "-a"], "env": {}}', "a.py"),
        ("c2", "shell", '{"commands": ["pwd"]}', "/home"),
        ("c3", "computer", '{"type": "screenshot"}', "[image omitted]"),
    ]
    same: list[Body] = [user()]
    for call_id, name, arguments, output in calls:
        same.append({"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments})
        same.append({"type": "function_call_output", "call_id": call_id, "output": output})
    await post(server, body(RESPONSES, [*same, said, user("Go on.")]))
    first, second = server.engine.submitted
    assert first.tokens == second.tokens
    listed = await server.client.get(f"{RESPONSES}/{found['id']}/input_items?order=asc")
    kinds = [item["type"] for item in orjson.loads(await listed.get_data(as_text=False))["data"]]
    assert kinds == ["message", "reasoning", *["function_call", "function_call_output"] * 3, "message", "message"]


async def test_a_message_of_another_agent_becomes_a_users(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=RESPONSES)
    server.answers()
    said = [{"type": "input_text", "text": "It is done."}, {"type": "encrypted_content", "encrypted_content": "gAA"}]
    await post(server, body(RESPONSES, [user(), {"type": "agent_message", "content": said}]))
    await post(server, body(RESPONSES, [user(), user("It is done.")]))
    first, second = server.engine.submitted
    assert first.tokens == second.tokens


def test_a_call_may_be_nested_as_deeply_as_a_body_can_be_read() -> None:
    body = b'{"type": "shell_call", "call_id": "c", "action": ' + 400 * b'{"x":' + b"{}" + 401 * b"}"
    item = as_function_item(orjson.loads(body))
    assert item is not None
    assert item["arguments"].count("x") == 400


@pytest.mark.parametrize("kind", ITEM_TYPES)
async def test_no_item_of_a_hosted_tool_is_refused(tokenizer: Tokenizer, kind: str) -> None:
    server = Server(tokenizer, url=RESPONSES)
    server.answers()
    for fields in (
        {},
        {"id": None, "output": None, "action": None},
        {"output": [{"x": 1}, 3], "action": [1], "id": "x"},
    ):
        await post(server, body(RESPONSES, [user(), {"type": kind} | fields, user()]))


async def test_blocks_of_hosted_tools_become_nothing(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=MESSAGES)
    server.answers()
    texts = [part(MESSAGES, "I search."), part(MESSAGES, "Found it.")]
    used: list[Body] = [{"type": kind, "id": "x", "content": [{"type": "text", "text": "x"}]} for kind in HISTORY]
    summary = {"type": "compaction", "content": "In short:"}
    _, warning = await post(server, body(MESSAGES, [user(), {"role": "assistant", "content": [*used, *texts]}, user()]))
    assert warning == f"blocks left out: {', '.join(HISTORY)}"
    await post(server, body(MESSAGES, [user(), {"role": "assistant", "content": texts}, user()]))
    first, second = server.engine.submitted
    assert first.tokens == second.tokens
    _, warning = await post(server, body(MESSAGES, [user(), {"role": "assistant", "content": [summary]}, user()]))
    assert warning is None
    assert "In short:" in prompt(server)
    _, warning = await post(server, body(MESSAGES, [user(), {"role": "assistant", "content": [used[0], texts[0]]}]))
    assert prompt(server).endswith("I search.")
