"""History is data: what clients send back means the same as its plain form. Unknown keys in it change nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from tests import dialects
from tests.api.fakes import MODEL, Server

Body = dict[str, Any]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }} {{ m.reasoning_content | default('') | tojson }}"
    "{% for c in m.tool_calls %} {{ c.function | tojson }}{% endfor %}\n{% endfor %}"
)
"""Shows everything that an answer has, except the ids of its calls."""
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
USER: Body = {"role": "user", "content": "Rome?"}
NEXT: Body = {"role": "user", "content": "And now?"}


@pytest.fixture(scope="module")
def serving(tokenizer: Tokenizer) -> Callable[[], Server]:
    """Returns the same server for all examples. The first example makes it, because it belongs to an event loop."""
    servers: list[Server] = []

    def get() -> Server:
        if not servers:
            servers.append(Server(tokenizer, max_waiting=1000))
            prompts = servers[0].service.prompts
            prompts.dialect = dialects.hermes(thinks=True)
            prompts._template = ChatTemplate(TEMPLATE, tokenizer)
        return servers[0]

    return get


async def prompt_of(server: Server, url: str, body: Body) -> str:
    """The prompt of a request. Asserts that it is accepted."""
    server.engine.posted.clear()
    server.answers()
    response = await server.client.post(url, json={"model": MODEL} | body)
    assert response.status_code == 200, await response.get_data(as_text=True)
    return server.tokenizer.text(server.engine.submitted[-1].tokens)


# Cases: what clients send back, and the plain form of it

CALL: Body = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLED: Body = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Body = {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."}
SAID: Body = {"role": "assistant", "content": "Sunny."}
THOUGHT: Body = SAID | {"reasoning_content": "Hm."}


def calling(function: Body, **more: Any) -> Body:
    return CALLED | {"tool_calls": [CALL | {"function": function} | more]}


CHATS: dict[str, tuple[Body, Body]] = {
    "the SDK's stream() and parse()": (
        {
            "content": '{"a": 1}',
            "refusal": None,
            "role": "assistant",
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
            "parsed": {"a": 1},
        },
        {"role": "assistant", "content": '{"a": 1}'},
    ),
    "calls of the SDK's stream() and parse()": (
        calling(CALL["function"] | {"parsed_arguments": {"city": "Rome"}}, index=0) | {"parsed": None},
        CALLED,
    ),
    "a whole choice's fields beside the message": (
        SAID | {"finish_reason": "stop", "index": 0, "logprobs": {"content": [{"token": "x"}]}, "id": "chatcmpl-1"},
        SAID,
    ),
    "LangChain": (
        CALLED | {"content": "", "name": None, "additional_kwargs": {}, "response_metadata": {}, "id": "run-1"},
        CALLED,
    ),
    "LangChain.js, content of only tool call blocks": (CALLED | {"content": []}, CALLED),
    "LiteLLM": (
        calling(CALL["function"] | {"provider_specific_fields": None}, caller=None, index=1)
        | {"function_call": None, "provider_specific_fields": {"refusal": None}, "images": [], "thinking_blocks": []},
        CALLED,
    ),
    "LiteLLM, prompt caching": (
        SAID | {"content": [{"type": "text", "text": "Sunny.", "cache_control": {"type": "ephemeral"}}]},
        SAID,
    ),
    "vLLM, SGLang: reasoning": (SAID | {"reasoning": "Hm.", "stop_reason": None}, THOUGHT),
    "vLLM, both names": (THOUGHT | {"reasoning": "Hm."}, THOUGHT),
    "OpenRouter": (
        SAID
        | {
            "reasoning": "Hm.",
            "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": None, "index": 0}],
        },
        THOUGHT,
    ),
    "OpenRouter, details only": (
        SAID
        | {
            "reasoning": None,
            "reasoning_details": [
                {"type": "reasoning.summary", "summary": "Hm."},
                {"type": "reasoning.encrypted", "data": "eyJ", "format": "x"},
            ],
        },
        THOUGHT,
    ),
    "Mistral, thinking parts": (
        SAID
        | {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True},
                {"type": "text", "text": "Sunny."},
            ]
        },
        THOUGHT,
    ),
    "LangChain v1, reasoning blocks": (
        SAID
        | {"content": [{"type": "reasoning", "reasoning": "Hm.", "extras": {}}, {"type": "text", "text": "Sunny."}]},
        THOUGHT,
    ),
    "Anthropic's blocks behind a gateway": (
        SAID
        | {
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Sunny.", "citations": None},
            ]
        },
        THOUGHT,
    ),
    "only thinking parts": (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}]},
        {"role": "assistant", "content": "", "reasoning_content": "Hm."},
    ),
    "Vercel AI SDK, parts": (SAID | {"content": [{"type": "text", "text": "Sunny."}]}, SAID),
    "Open WebUI and Codex proxies, parts of responses": (
        SAID | {"content": [{"type": "output_text", "text": "Sunny.", "annotations": []}]},
        SAID,
    ),
    "Gemini's signature": (calling(CALL["function"], extra_content={"google": {"thought_signature": "x"}}), CALLED),
    "Cline and OpenHands, a call that was cut": (
        calling({"name": "weather", "arguments": '{"city": "Ro'}),
        calling({"name": "weather", "arguments": '{"city": "Ro'}),
    ),
    "Ollama, arguments as an object": (calling({"name": "weather", "arguments": {"city": "Rome"}}), CALLED),
    "no arguments": (
        calling({"name": "weather", "arguments": ""}),
        calling({"name": "weather", "arguments": "{}"}),
    ),
    "null arguments and type": (
        calling({"name": "weather", "arguments": None}, type=None),
        calling({"name": "weather", "arguments": "{}"}),
    ),
    "a name that the model invented": (
        calling({"name": "functions.weather:0", "arguments": "{}"}),
        calling({"name": "functions.weather:0", "arguments": "{}", "x": 1}),
    ),
    "content missing beside calls": ({"role": "assistant", "tool_calls": [CALL]}, CALLED),
    "content null without calls": ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
    "llama-server's agents, an answer without anything": (
        {"role": "assistant", "content": "", "tool_calls": [], "reasoning_content": None},
        {"role": "assistant", "content": ""},
    ),
    "a refusal": (
        {"role": "assistant", "content": None, "refusal": "No.", "parsed": None},
        {"role": "assistant", "content": "No."},
    ),
    "a refusal part": (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No.", "x": 1}]},
        {"role": "assistant", "content": "No."},
    ),
    "OpenAI's annotations": (SAID | {"annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}]}, SAID),
    "a result with parts and a name": (
        RESULT | {"name": "weather", "content": [{"type": "text", "text": "Sunny.", "x": 1}], "is_error": False},
        RESULT,
    ),
    "an empty result": (RESULT | {"content": []}, RESULT | {"content": ""}),
    "AutoGen, names of users": (USER | {"name": "Ann", "metadata": {}, "id": "m1", "timestamp": 1}, USER),
    "LibreChat and Continue, ids of messages": (USER | {"messageId": "x", "parentMessageId": None}, USER),
    "a developer": (
        {"role": "developer", "content": [{"type": "text", "text": "Be brief.", "x": 1}], "x": 1},
        {"role": "system", "content": "Be brief."},
    ),
}


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_message_of_a_client_means_its_plain_form(serving: Callable[[], Server], name: str) -> None:
    sent, plain = CHATS[name]
    prompts = [await prompt_of(serving(), CHAT, {"messages": [USER, each, NEXT]}) for each in (sent, plain)]
    assert prompts[0] == prompts[1]
    assert "None" not in prompts[0]


OUR_CALL: Body = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
OUR_RESULT: Body = {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."}
OUR_THOUGHT: Body = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}], "summary": []}
RESPONSE_ITEMS: dict[str, tuple[Body, Body]] = {
    "the SDK's stream() and parse()": (
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "phase": None,
            "content": [
                {"type": "output_text", "text": "Sunny.", "annotations": [], "logprobs": None, "parsed": {"a": 1}}
            ],
        },
        SAID,
    ),
    "a call of the SDK's stream() and parse()": (
        OUR_CALL
        | {
            "id": "fc_1",
            "status": "completed",
            "parsed_arguments": {"city": "Rome"},
            "async_": None,
            "caller": None,
            "namespace": None,
        },
        OUR_CALL,
    ),
    "a call that a program made": (
        OUR_CALL | {"caller": {"type": "program", "caller_id": "x"}, "async": True},
        OUR_CALL,
    ),
    "OpenAI's reasoning": (
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "Hm.", "x": 1}],
            "content": None,
        },
        OUR_THOUGHT,
    ),
    "OpenAI's annotations": (
        SAID | {"content": [{"type": "output_text", "text": "Sunny.", "annotations": [{"type": "url_citation"}]}]},
        SAID,
    ),
    "Agents SDK": (
        {
            "id": "__fake_id__",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Sunny.", "annotations": []}],
            "provider_data": {"model": "x"},
        },
        SAID,
    ),
    "OpenCode, without ids": ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, OUR_THOUGHT),
    "any-llm, null ids and status": (SAID | {"type": "message", "id": None, "status": None, "phase": None}, SAID),
    "LiteLLM, an id of a chat completion": (
        SAID | {"type": "message", "id": "chatcmpl-1", "status": "completed"},
        SAID,
    ),
    "an empty id": (OUR_CALL | {"id": ""}, OUR_CALL),
    "adk-go, an answer as input text": (SAID | {"content": [{"type": "input_text", "text": "Sunny."}]}, SAID),
    "LiteLLM, parts of chats": (USER | {"content": [{"type": "text", "text": "Rome?", "cache_control": {}}]}, USER),
    "a result of parts": (
        OUR_RESULT | {"output": [{"type": "output_text", "text": "Sunny.", "annotations": []}], "name": "weather"},
        OUR_RESULT | {"output": [{"type": "text", "text": "Sunny.", "meta": {}}], "name": "weather", "x": 1},
    ),
    "an answer without content": (
        {"type": "message", "role": "assistant", "content": None},
        {"role": "assistant", "content": []},
    ),
    "arguments as an object": (OUR_CALL | {"arguments": {"city": "Rome"}}, OUR_CALL),
    "no arguments": (OUR_CALL | {"arguments": ""}, OUR_CALL | {"arguments": "{}"}),
    "a call that was cut": (
        OUR_CALL | {"arguments": '{"city": "Ro', "status": "incomplete"},
        OUR_CALL | {"arguments": '{"city": "Ro'},
    ),
    "a name that the model invented": (
        OUR_CALL | {"name": "a b" * 99},
        OUR_CALL | {"name": "a b" * 99, "x": 1},
    ),
    "Pydantic AI, names": (USER | {"name": "Ann"}, USER),
}


@pytest.mark.parametrize("name", RESPONSE_ITEMS)
async def test_an_item_of_a_client_means_its_plain_form(serving: Callable[[], Server], name: str) -> None:
    sent, plain = RESPONSE_ITEMS[name]
    prompts = [await prompt_of(serving(), RESPONSES, {"input": [USER, each, NEXT]}) for each in (sent, plain)]
    assert prompts[0] == prompts[1]


TEXT: Body = {"type": "text", "text": "Sunny."}
USE: Body = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
DONE: Body = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}
THINKING: Body = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
BLOCKS: dict[str, tuple[list[Body], list[Body]]] = {
    "the SDK's stream() and parse()": ([TEXT | {"citations": None, "parsed_output": {"a": 1}}], [TEXT]),
    "citations": ([TEXT | {"citations": [{"type": "char_location", "cited_text": "x", "document_index": 0}]}], [TEXT]),
    "a call with its caller": (
        [USE | {"caller": {"type": "code_execution_20250825", "tool_id": "x"}, "toolset_name": "home"}],
        [USE],
    ),
    "Claude Code's cache breakpoints": ([TEXT | {"cache_control": {"type": "ephemeral", "scope": "x"}}], [TEXT]),
    "a call with text": ([USE | {"text": ""}], [USE]),
    "thinking without a signature": ([{"type": "thinking", "thinking": "Hm."}, TEXT], [THINKING, TEXT]),
    "thinking of another server": ([THINKING | {"signature": None, "estimated_tokens": 3}, TEXT], [THINKING, TEXT]),
    "redacted thinking": ([{"type": "redacted_thinking", "data": "x", "y": 1}, TEXT], [TEXT]),
    "input as text": ([USE | {"input": '{"city": "Rome"}'}], [USE]),
    "input as text that was cut": ([USE | {"input": '{"city": "Ro'}], [USE | {"input": '{"city": "Ro', "index": 0}]),
    "no input": ([USE | {"input": None}, USE | {"input": ""}], [USE | {"input": {}}] * 2),
    "no content": ([], [TEXT | {"text": ""}]),
    "a name that the model invented": ([USE | {"name": "a b"}], [USE | {"name": "a b", "x": 1}]),
}


@pytest.mark.parametrize("name", BLOCKS)
async def test_blocks_of_a_client_mean_their_plain_form(serving: Callable[[], Server], name: str) -> None:
    sent, plain = BLOCKS[name]
    whole: Body = {
        "id": "msg_1",
        "type": "message",
        "model": "x",
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1},
    }
    bodies = [
        {"messages": [USER, {"role": "assistant", "content": plain}, NEXT]},
        {"messages": [USER, {"role": "assistant", "content": sent}, NEXT]},
        {"messages": [USER | {"id": "m1"}, whole | {"role": "assistant", "content": sent}, NEXT]},
    ]
    plainly, *others = [await prompt_of(serving(), MESSAGES, body | {"max_tokens": 9}) for body in bodies]
    assert others == [plainly] * 2


async def test_system_blocks_and_results_of_clients_mean_their_plain_form(serving: Callable[[], Server]) -> None:
    sent = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}, "x": 1}],
        "messages": [USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [DONE | {"x": 1}]}],
    }
    plain = {
        "system": "Be brief.",
        "messages": [USER, {"role": "assistant", "content": [USE]}, NEXT | {"content": [DONE]}],
    }
    prompts = [await prompt_of(serving(), MESSAGES, body | {"max_tokens": 9}) for body in (sent, plain)]
    assert prompts[0] == prompts[1]


# Templates

READS_OBJECTS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}<tool_call>"
    "{% for name, value in c.function.arguments.items() %}{{ name }}={{ value }};{% endfor %}"
    "</tool_call>{% endfor %}{% endfor %}"
)
READS_TEXTS = READS_OBJECTS.replace(
    "{% for name, value in c.function.arguments.items() %}{{ name }}={{ value }};{% endfor %}",
    "{{ c.function.arguments | tojson }}",
)


@pytest.mark.parametrize(
    ("arguments", "read", "written"),
    [
        ('{"city": "Rome"}', "city=Rome;", '{"city": "Rome"}'),
        ("", "", "{}"),
        (" \n", "", "{}"),
        ('{"city": "Rome", "days": [1, 2', "city=Rome;days=[1, 2];", r'"{\"city\": \"Rome\", \"days\": [1, 2"'),
        ("Rome", "arguments=Rome;", '"Rome"'),
        ("[1]", "arguments=[1];", "[1]"),
    ],
)
async def test_templates_that_read_objects_also_get_arguments_that_are_none(
    tokenizer: Tokenizer, arguments: str, read: str, written: str
) -> None:
    """Templates that can write any arguments get the text as it is."""
    server = Server(tokenizer)
    messages = [USER, calling({"name": "weather", "arguments": arguments}), RESULT]
    for template, expected in ((READS_OBJECTS, read), (READS_TEXTS, written)):
        server.service.prompts.dialect = dialects.hermes()
        server.service.prompts._template = ChatTemplate(template, tokenizer)
        prompt = await prompt_of(server, CHAT, {"messages": messages})
        assert f"assistant: <tool_call>{expected}</tool_call>" in prompt


async def test_a_template_that_refuses_a_conversation_still_refuses_it(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer)
    server.service.prompts.dialect = dialects.hermes()
    server.service.prompts._template = ChatTemplate("{{ raise_exception('roles must alternate') }}", tokenizer)
    body = {"model": MODEL, "messages": [USER, calling({"name": "weather", "arguments": "Rome"}), RESULT]}
    response = await server.client.post(CHAT, json=body)
    assert response.status_code == 400
    assert "roles must alternate" in await response.get_data(as_text=True)


async def test_invented_names_and_cut_arguments_are_rendered_as_text_for_a_model_without_tools(
    tokenizer: Tokenizer,
) -> None:
    server = Server(tokenizer)
    assert server.service.prompts.dialect.name == "words"
    prompt = await prompt_of(server, CHAT, {"messages": [USER, calling({"name": "a b", "arguments": '{"c'}), RESULT]})
    assert '{"name": "a b", "arguments": {"c}' in prompt


# Unknown keys change nothing, wherever they are

JUNK: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | st.just([{}]) | st.just({"type": "text"})
)
UNKNOWN = st.dictionaries(
    st.sampled_from(["index", "parsed", "parsed_arguments", "provider_specific_fields", "extra_content", "vendor_x"]),
    JUNK,
    max_size=3,
)
DATA = ("arguments", "input")
"""Fields whose objects are the client's own."""


def with_unknown(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with unknown keys in each object of a conversation."""
    if isinstance(value, list):
        return [with_unknown(each, draw) for each in value]
    if isinstance(value, dict):
        known = {key: each if key in DATA else with_unknown(each, draw) for key, each in value.items()}
        return draw(UNKNOWN) | known
    return value


PLAIN: list[tuple[str, Body, Body]] = [
    # URL, conversation, other fields
    (
        CHAT,
        {
            "messages": [
                USER,
                CALLED,
                RESULT,
                THOUGHT,
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                NEXT,
            ]
        },
        {},
    ),
    (
        RESPONSES,
        {
            "input": [
                USER,
                OUR_THOUGHT,
                SAID | {"content": [{"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "No."}]},
                OUR_CALL,
                OUR_RESULT | {"output": [{"type": "input_text", "text": "Sunny."}]},
                NEXT,
            ]
        },
        {},
    ),
    (
        MESSAGES,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [THINKING, TEXT, USE]},
                {"role": "user", "content": [DONE | {"content": [TEXT]}, TEXT]},
            ],
            "system": [TEXT],
        },
        {"max_tokens": 9},
    ),
]


@settings(max_examples=40)
@given(data=st.data())
async def test_unknown_keys_in_a_conversation_change_nothing(
    serving: Callable[[], Server], data: st.DataObject
) -> None:
    for url, conversation, more in PLAIN:
        grown = {name: with_unknown(value, data.draw) for name, value in conversation.items()}
        plainly = await prompt_of(serving(), url, conversation | more)
        assert await prompt_of(serving(), url, grown | more) == plainly


@pytest.mark.parametrize(("url", "conversation", "more"), PLAIN, ids=[url for url, *_ in PLAIN])
async def test_an_unknown_field_of_a_request_is_still_refused_by_name(
    serving: Callable[[], Server], url: str, conversation: Body, more: Body
) -> None:
    response = await serving().client.post(url, json={"model": MODEL, "parsed": None} | conversation | more)
    assert response.status_code == 400
    assert "Unrecognized request argument supplied: parsed" in await response.get_data(as_text=True)
