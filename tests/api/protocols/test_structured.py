"""JSON schemas in the requests of all protocols, and how long they may take."""

import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import trio

from api.engine.generation import INVALID_GRAMMAR
from api.protocols import structured
from api.text.dialects import tools
from api.text.schemas import MAX_ALTERNATIVES, schema_rule
from api.text.tokenizer import Tokenizer
from tests.api.fakes import MODEL, Server

MESSAGES = [{"role": "user", "content": "Hello"}]
LOOSE: dict[str, Any] = {"type": "array", "items": {"type": "string", "format": "path"}, "uniqueItems": True}
"""What pydantic writes for a set of paths: `uniqueItems` cannot be enforced, and the format is an annotation."""
ENFORCED = {"type": "array", "items": {"type": "string"}}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": MESSAGES} | fields


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"prompt": "Hello"} | fields


def response(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": "Hello"} | fields


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"messages": MESSAGES, "max_tokens": 9} | fields


def wrapped(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema} | fields}


def flat(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "name": "x", "schema": schema} | fields


def function(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema} | fields}


HINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": chat(response_format=wrapped(LOOSE)),
    "not strict": chat(response_format=wrapped(LOOSE, strict=False)),
    "json_object": chat(response_format={"type": "json_object", "schema": LOOSE}),
    "json_schema": chat(json_schema=LOOSE),
    "guided_json": completion(guided_json=LOOSE),
    "text of guided_json": completion(guided_json=orjson.dumps(LOOSE).decode()),
    "structured_outputs": completion(structured_outputs={"json": LOOSE}),
    "response": response(text={"format": flat(LOOSE)}),
    "response not strict": response(text={"format": flat(LOOSE, strict=False)}),
    "message": message(output_config={"format": {"type": "json_schema", "schema": LOOSE}}),
    "older message": message(output_format={"type": "json_schema", "schema": LOOSE}),
}
STRICT: dict[str, tuple[tuple[str, dict[str, Any]], str]] = {
    "chat": (chat(response_format=wrapped(LOOSE, strict=True)), "response_format"),
    "response": (response(text={"format": flat(LOOSE, strict=True)}), "text.format"),
    "tool of a chat": (chat(tools=[function({"properties": {"x": LOOSE}}, strict=True)]), "tools"),
    "tool of a response": (
        response(tools=[{"type": "function", "name": "f", "parameters": {"properties": {"x": LOOSE}}, "strict": True}]),
        "tools",
    ),
    "tool of a message": (
        message(tools=[{"name": "f", "input_schema": {"properties": {"x": LOOSE}}, "strict": True}]),
        "tools",
    ),
}


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer)
    server.answers("[]")
    return server


async def post(server: Server, asked: tuple[str, dict[str, Any]]) -> tuple[int, Any]:
    server.url, body = asked
    reply = await server.post({"model": MODEL} | body)
    return reply.status_code, orjson.loads(await reply.get_data())


@pytest.mark.parametrize("name", HINTS)
async def test_a_schema_without_strict_is_a_hint(server: Server, name: str) -> None:
    status, body = await post(server, HINTS[name])
    assert status == 200, body
    assert server.engine.submitted[-1].grammar.endswith(schema_rule(ENFORCED))


@pytest.mark.parametrize("name", STRICT)
async def test_a_strict_schema_is_refused_by_the_part_that_cannot_be_enforced(server: Server, name: str) -> None:
    asked, param = STRICT[name]
    status, body = await post(server, asked)
    assert status == 400
    error = body["error"]
    assert "'uniqueItems' cannot be enforced (at #/" in error["message"]
    assert "leave 'strict' out" in error["message"]
    assert error.get("code") in (INVALID_GRAMMAR, None)
    assert param in (error.get("param"), error["message"].partition(":")[0])
    assert not server.engine.submitted


@pytest.mark.parametrize("text", ["{", "5", "[]", '"x"', "[" * 5000, '{"const": "\\ud800"}'])
async def test_text_that_is_no_schema_is_refused(server: Server, text: str) -> None:
    status, body = await post(server, completion(guided_json=text))
    assert (status, body["error"]["param"]) == (400, "guided_json")


@pytest.mark.parametrize("field", ["guided_choice", "structured_outputs"])
async def test_a_choice_may_be_as_long_as_an_enum(server: Server, field: str) -> None:
    def asked(number: int) -> tuple[str, dict[str, Any]]:
        texts = [f"choice{each}" for each in range(number)]
        return completion(**{field: texts if field == "guided_choice" else {"choice": texts}})

    status, _ = await post(server, asked(MAX_ALTERNATIVES))
    assert status == 200
    assert "choice39999" in server.engine.submitted[-1].grammar
    status, body = await post(server, asked(MAX_ALTERNATIVES + 1))
    assert status == 400
    assert str(MAX_ALTERNATIVES) in body["error"]["message"]


@pytest.mark.parametrize(
    ("module", "asked"),
    [(structured, chat(response_format=wrapped({}))), (tools, chat(tools=[function({"type": "object"})]))],
    ids=["format", "tools"],
)
async def test_other_requests_are_served_while_a_grammar_is_made(
    server: Server, monkeypatch: pytest.MonkeyPatch, module: Any, asked: tuple[str, dict[str, Any]]
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(*args: Any, make: Callable[..., str] = schema_rule, **kwargs: Any) -> str:
        begun.set()
        goes_on.wait(60)
        return make(*args, **kwargs)

    monkeypatch.setattr(module, "schema_rule", slowly)
    statuses = []

    async def ask() -> None:
        statuses.append((await post(server, asked))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.to_thread.run_sync(begun.wait)
        try:
            assert (await post(server, chat()))[0] == 200
            assert not statuses
        finally:
            goes_on.set()
    assert statuses == [200]
