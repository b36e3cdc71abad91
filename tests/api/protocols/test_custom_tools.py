"""Custom tools: functions with one string, answered as plain text, in chats and in responses."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from openai.types.chat import ChatCompletion, ChatCompletionMessageCustomToolCall
from openai.types.responses import Response, ResponseCustomToolCall, ResponseStreamEvent
from pydantic import TypeAdapter

from api.protocols.chat import types as chat_types
from api.protocols.custom import (
    MAX_CHARACTERS,
    MAX_ENFORCED,
    InputGrammar,
    InputReader,
    arguments_of,
    as_function,
    input_of,
    is_hint,
)
from api.protocols.responses import types as response_types
from api.text.guard import without_surrogates
from api.text.schemas import json_rule
from api.text.tokenizer import Tokenizer
from tests.api.fakes import INFO, MODEL, Server

Body = dict[str, Any]
BYTES = LLTokenizer("byte")
"""A vocabulary in which each byte is a token."""
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

LARK = 'start: "*** Begin Patch" LF /(.|\\n)*/\nLF: "\\n"'
DATE = InputGrammar(syntax="regex", definition=r"\d{4}|now")
PATCH: Body = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": LARK},
}
NOTE: Body = {"type": "custom", "name": "note", "format": {"type": "text"}}
CLOCK: Body = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
INPUT = '*** Begin Patch\n+print("\\\\ ü 😀")\n*** End Patch\n'


def nested(tool: Body) -> Body:
    """A tool of the Responses API in the form of chats."""
    kind = tool["type"]
    inner = {key: value for key, value in tool.items() if key != "type"}
    if inner.get("format", {}).get("type") == "grammar":
        grammar = {key: value for key, value in inner["format"].items() if key != "type"}
        inner["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": kind, kind: inner}


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer, url=RESPONSES)


@pytest.fixture
def chats(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer, url=CHAT)


async def post(server: Server, body: Body, status: int = 200) -> Any:
    """The answer's body and its warning."""
    response = await server.post({"model": MODEL} | body)
    found = orjson.loads(await response.get_data(as_text=False))
    assert response.status_code == status, found
    return found, response.headers.get("cortex-warning")


# The input in the arguments

TEXTS = st.text() | st.text(alphabet='"\\u/d8\n\t\x00😀\ud83d\ude00')


@given(text=TEXTS, cuts=st.lists(st.integers(0, 60)), is_ascii=st.booleans())
def test_the_input_does_not_depend_on_the_pieces_of_the_arguments(text: str, cuts: list[int], is_ascii: bool) -> None:
    escaped = is_ascii or any("\ud800" <= character <= "\udfff" for character in text)
    arguments = json.dumps({"input": text}, ensure_ascii=escaped)
    expected = without_surrogates(json.loads(arguments)["input"])
    reader = InputReader()
    edges = [0, *sorted(cut % (len(arguments) + 1) for cut in cuts), len(arguments)]
    assert "".join(reader.push(arguments[a:b]) for a, b in pairwise(edges)) == expected
    for cut in edges:
        assert expected.startswith(input_of(arguments[:cut]))


@given(text=TEXTS)
def test_arguments_contain_their_input(text: str) -> None:
    assert input_of(arguments_of(text)) == without_surrogates(text)


# Grammars of the input


def accepts(grammar: InputGrammar | None, text: str) -> bool:
    """Whether the grammar of the arguments accepts this input."""
    rule = json_rule(as_function("f", None, grammar).schema())
    document = f"start: {rule}"
    assert not LLMatcher.validate_grammar(document)
    matcher = LLMatcher(BYTES, document, log_level=0)
    data = list(arguments_of(text).encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (None, ["", "a", "\n😀\\"], []),
        (DATE, ["2026", "now"], ["20261", "x2026", "nowhere", ""]),
        (InputGrammar(syntax="regex", definition='say "[a-z]+"\n'), ['say "hi"\n'], ["say hi", 'say "hi"']),
        (InputGrammar(syntax="lark", definition=LARK), ["anything"], []),
        (InputGrammar(syntax="regex", definition="(?=x)x"), ["anything"], []),
        (InputGrammar(syntax="regex", definition="("), ["anything"], []),
    ],
    ids=str,
)
def test_regular_expressions_are_enforced_and_other_grammars_are_hints(
    grammar: InputGrammar | None, right: list[str], wrong: list[str]
) -> None:
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []
    assert is_hint(grammar) == (bool(grammar) and not wrong)
    if grammar is not None:
        assert (as_function("f", "Words.", grammar).description or "").startswith("Words.\n\n")
        assert grammar.definition in (as_function("f", None, grammar).description or "")


async def test_a_request_has_a_bounded_number_of_enforced_grammars(server: Server, chats: Server) -> None:
    """Each of them is checked on the event loop."""
    kind = {"type": "grammar", "syntax": "regex"}
    many = [NOTE | {"name": f"note_{n}", "format": kind | {"definition": f"a{n}"}} for n in range(MAX_ENFORCED + 1)]
    for each, form in ((server, lambda tool: tool), (chats, nested)):
        each.answers()
        body = {"input": "Hi"} if each is server else {"messages": [{"role": "user", "content": "Hi"}]}
        each.engine.info = replace(INFO, ctx_len=8192)
        _, warning = await post(each, body | {"tools": [form(tool) for tool in many]})
        assert warning == f"grammars not enforced: note_{MAX_ENFORCED}"
    assert is_hint(InputGrammar(syntax="regex", definition="x" * (MAX_CHARACTERS + 1)))


async def test_a_grammar_that_is_a_hint_is_a_warning(server: Server, chats: Server) -> None:
    for each, form in ((server, lambda tool: tool), (chats, nested)):
        each.answers(call("apply_patch", arguments_of(INPUT)))
        body = {"input": "Hi"} if each is server else {"messages": [{"role": "user", "content": "Hi"}]}
        _, warning = await post(each, body | {"tools": [form(PATCH), form(NOTE)]})
        assert warning == "grammars not enforced: apply_patch"
        _, warning = await post(each, body | {"tools": [form(NOTE)]})
        assert warning is None


# Answers


async def streamed(server: Server, body: Body) -> list[Any]:
    async with server.stream({"model": MODEL} | body) as stream:
        return await stream.rest()


async def test_a_response_has_the_input_as_plain_text(server: Server) -> None:
    server.answers("Look: " + call("apply_patch", json.dumps({"input": INPUT})))
    asked = {"input": "Fix it.", "tools": [PATCH, CLOCK]}
    body, _ = await post(server, asked)
    response_types.Response.model_validate(body)
    item = Response.model_validate(body, strict=True).output[1]
    assert isinstance(item, ResponseCustomToolCall)
    assert (item.name, item.input, item.namespace) == ("apply_patch", INPUT, None)
    assert item.id is not None
    assert item.id.startswith("ctc_")
    assert body["tools"][0] == PATCH
    events = await streamed(server, asked)
    for event in events:
        response_types.ResponseEvent.model_validate(event)
        EVENT.validate_python(event, strict=True)
    pieces = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    [done] = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
    [*_, ended, completed] = events
    assert "".join(pieces) == done["input"] == ended["item"]["input"] == INPUT
    assert completed["response"]["output"][1] == ended["item"]


async def test_a_chat_has_the_input_as_plain_text(chats: Server) -> None:
    texts = [call("apply_patch", json.dumps({"input": INPUT})), call("clock", "{}"), call("note", '{"input": ""}')]
    chats.answers("\n".join(texts))
    asked = {"messages": [{"role": "user", "content": "Fix it."}], "tools": [nested(t) for t in (PATCH, CLOCK, NOTE)]}
    body, _ = await post(chats, asked)
    chat_types.ChatCompletion.model_validate(body)
    [choice] = ChatCompletion.model_validate(body, strict=True).choices
    calls = choice.message.tool_calls or []
    assert [each.type for each in calls] == ["custom", "function", "custom"]
    assert [each.custom.input for each in calls if isinstance(each, ChatCompletionMessageCustomToolCall)] == [INPUT, ""]
    assert choice.finish_reason == "tool_calls"
    summed: list[Body] = []
    *chunks, _done = await streamed(chats, asked)
    for chunk in chunks:
        chat_types.ChatCompletionChunk.model_validate(chunk)
        for piece in chunk["choices"][0]["delta"].get("tool_calls", []):
            if piece["index"] == len(summed):
                summed.append({key: value for key, value in piece.items() if key != "index"})
            else:
                kind = summed[-1]["type"]
                field = {"custom": "input", "function": "arguments"}[kind]
                summed[-1][kind][field] += piece[kind][field]
    assert [each | {"id": ""} for each in summed] == [
        each | {"id": ""} for each in body["choices"][0]["message"]["tool_calls"]
    ]


async def test_a_cut_call_has_the_input_up_to_the_cut(server: Server) -> None:
    server.answers('<tool_call>\n{"name": "note", "arguments": {"input": "a\\n\\u00', "length")
    body, _ = await post(server, {"input": "Hi", "tools": [NOTE]})
    [item] = body["output"]
    assert (body["status"], item["status"], item["input"]) == ("incomplete", "incomplete", "a\n")
    assert (await streamed(server, {"input": "Hi", "tools": [NOTE]}))[-1]["response"]["output"][0]["input"] == "a\n"


# Histories


async def test_a_call_that_is_sent_back_makes_the_prompt_of_a_function_call(server: Server, chats: Server) -> None:
    server.answers(call("note", arguments_of(INPUT)))
    first, _ = await post(server, {"input": "Hi", "tools": [NOTE], "store": False})
    [made] = first["output"]
    result = {"type": "custom_tool_call_output", "call_id": made["call_id"], "output": "Done."}
    user = {"role": "user", "content": "Hi"}
    kept, _ = await post(server, {"input": [user, made, result], "tools": [NOTE]})
    listed = await server.client.get(f"{RESPONSES}/{kept['id']}/input_items?order=asc")
    items = orjson.loads(await listed.get_data(as_text=False))
    response_types.ResponseItems.model_validate(items)
    assert items["data"][1] == made
    assert items["data"][2]["type"] == "custom_tool_call_output"
    await post(server, {"input": [{"type": "item_reference", "id": made["id"]}], "tools": [NOTE]}, 404)
    chats.answers()
    for kind, inner in (
        ("custom", {"name": "note", "input": INPUT}),
        ("function", {"name": "note", "arguments": arguments_of(INPUT)}),
    ):
        calls = [{"id": made["call_id"], "type": kind, kind: inner}]
        told = {"role": "tool", "tool_call_id": made["call_id"], "content": "Done."}
        messages = [user, {"role": "assistant", "content": None, "tool_calls": calls}, told]
        await post(chats, {"messages": messages, "tools": [nested(NOTE)]})
        assert chats.engine.submitted[-1].tokens == server.engine.submitted[1].tokens


# Choices


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "custom", "name": "note"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "note"}]},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp"}, {"type": "custom", "name": "note"}]},
    ],
    ids=str,
)
async def test_a_custom_tool_can_be_chosen(server: Server, chats: Server, choice: Body) -> None:
    server.answers(call("note", '{"input": "x"}'))
    body, _ = await post(server, {"input": "Hi", "tools": [CLOCK, NOTE], "tool_choice": choice})
    assert body["tool_choice"] == choice
    chats.answers(call("note", '{"input": "x"}'))
    if "tools" in choice:
        tools = [nested(tool) if "name" in tool else tool for tool in choice["tools"]]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    else:
        choice = nested(choice)
    messages = [{"role": "user", "content": "Hi"}]
    await post(chats, {"messages": messages, "tools": [nested(CLOCK), nested(NOTE)], "tool_choice": choice})
    for each in (server, chats):
        grammar = each.engine.submitted[-1].grammar
        assert '\\"note\\"' in grammar
        assert '\\"clock\\"' not in grammar


async def test_a_namespace_may_have_custom_tools(server: Server) -> None:
    server.answers(call("files__note", '{"input": "x"}'))
    group = {"type": "namespace", "name": "files", "description": "Of files.", "tools": [NOTE, CLOCK]}
    body, _ = await post(server, {"input": "Hi", "tools": [group]})
    response_types.Response.model_validate(body)
    [item] = body["output"]
    assert (item["type"], item["name"], item["namespace"], item["input"]) == ("custom_tool_call", "note", "files", "x")
    await post(server, {"input": [{"role": "user", "content": "Hi"}, item], "tools": [group]})
    assert "files__note" in server.tokenizer.text(server.engine.submitted[-1].tokens).split("Hi")[1]
