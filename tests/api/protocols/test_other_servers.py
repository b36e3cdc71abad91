"""The fields of other servers: every row of their table, and those that are served as other servers have them."""

from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from quart import Response

from api.errors import ApiError
from api.protocols.chat.request import UNSERVED, ChatRequest
from api.protocols.completions.request import CompletionRequest
from api.protocols.embeddings.request import EmbeddingsRequest
from api.protocols.fields import Wire, parse
from api.protocols.other_servers import OTHER_FIELDS, Endpoint, OtherField, other_fields
from api.protocols.responses.request import ResponseRequest
from api.protocols.tokens.request import ApplyTemplateRequest, TokenizeRequest
from api.serving.choice import Choice
from api.text.guard import TemplateRefusal
from api.text.template import ChatTemplate, PromptEnd
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embedded, Output
from tests.api.fakes import INFO, MODEL, Server, events

USER = {"role": "user", "content": "Hello"}
BEGUN = {"role": "assistant", "content": "Once upon "}
REQUESTS: Final[dict[Endpoint, tuple[type[Wire], str, dict[str, Any]]]] = {
    "chat": (ChatRequest, "/v1/chat/completions", {"model": MODEL, "messages": [USER]}),
    "completions": (CompletionRequest, "/v1/completions", {"model": MODEL, "prompt": "Hello"}),
    "responses": (ResponseRequest, "/v1/responses", {"model": MODEL, "input": "Hello"}),
    "embeddings": (EmbeddingsRequest, "/v1/embeddings", {"model": MODEL, "input": "Hello"}),
    "tokenize": (TokenizeRequest, "/tokenize", {"messages": [USER]}),
    "apply-template": (ApplyTemplateRequest, "/apply-template", {"messages": [USER]}),
}
OTHER_VALUES: Final[tuple[Any, ...]] = (True, False, 7, 0, 1, -1, 0.5, "other", "", ["other"], [], {"x": 1}, {})
"""One of each type, and the usual defaults."""
ROWS: Final = [
    pytest.param(field, endpoint, id=f"{field.name}-{endpoint}")
    for field in OTHER_FIELDS
    for endpoint in field.endpoints
]


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer)
    server.engine.info = replace(INFO, pooling="mean", embedding_size=1, max_text_tokens=16)
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, ["AAAAAA=="])]
    server.answers("Fine.")
    return server


async def post(server: Server, path: str, body: dict[str, Any]) -> Response:
    return await server.client.post(path, data=orjson.dumps(body), headers={"Content-Type": "application/json"})


async def answer(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await post(server, path, body)
    text = await response.get_data(as_text=False)
    assert response.status_code == 200, text
    found: dict[str, Any] = orjson.loads(text)
    return found


async def refusal(server: Server, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """The param and the message of a 400."""
    response = await post(server, path, body)
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    assert response.status_code == 400, error
    return error["param"], error["message"]


# The table


def test_a_field_has_one_row_per_endpoint() -> None:
    for endpoint in REQUESTS:
        names = [field.name for field in OTHER_FIELDS if endpoint in field.endpoints]
        assert sorted(names) == sorted(set(names))
        assert not set(names) & set(UNSERVED)


@pytest.mark.parametrize(("field", "endpoint"), ROWS)
def test_a_row_says_what_happens(field: OtherField, endpoint: Endpoint) -> None:
    """Null and the values that ask for nothing are accepted. Others are read, accepted, or refused with the reason."""
    model, _, body = REQUESTS[endpoint]
    plain = parse(model, body)
    for value in (None, *field.nothing):
        assert parse(model, body | {field.name: value}) == plain, value
    assert (field.name in model.model_fields) == (field.verdict == "served")
    for value in OTHER_VALUES:
        if field.verdict == "served" or field.asks_for_nothing(value):
            continue
        if field.verdict == "accepted" and field.has_type(value):
            assert parse(model, body | {field.name: value}) == plain
            continue
        with pytest.raises(ApiError) as refused:
            parse(model, body | {field.name: value})
        assert (refused.value.status, refused.value.param) == (400, field.name)
        if field.verdict == "refused":
            assert refused.value.code == "unsupported_parameter"
            assert field.note.replace("`", "'") in refused.value.message
        else:
            assert (refused.value.code, field.type_names in refused.value.message) == ("invalid_value", True)


def test_numbers_are_compared_by_value_and_booleans_are_no_numbers() -> None:
    penalty, beams = (other_fields("chat")[name] for name in ("length_penalty", "use_beam_search"))
    assert [value for value in (1, 1.0, True, "1") if penalty.asks_for_nothing(value)] == [1, 1.0]
    assert [value for value in (0, 0.0, False, "") if beams.asks_for_nothing(value)] == [False]


@pytest.mark.parametrize("endpoint", REQUESTS)
async def test_all_values_that_ask_for_nothing_can_be_sent_together(server: Server, endpoint: Endpoint) -> None:
    """A client that always sends its defaults gets the answer that it gets without them."""
    _, path, body = REQUESTS[endpoint]
    last = {name: field.nothing[-1] for name, field in other_fields(endpoint).items() if field.nothing}
    first = {name: field.nothing[0] for name, field in other_fields(endpoint).items() if field.nothing}
    for defaults in (first, last):
        found = await answer(server, path, body | defaults)
        assert set(found) == set(await answer(server, path, body))


VLLM_ROUTER: Final = {"no_stop_trim": False, "ignore_eos": False, "skip_special_tokens": True, "stream": False}
VLLM_ROUTERS_CHATS: Final = {
    "continue_final_message": False,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "include_reasoning": True,
    "logprobs": False,
}
SMGS_RESPONSES: Final = {"priority": 0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "temperature": 1.0}
ROUTERS: Final[list[tuple[Endpoint, dict[str, Any]]]] = [
    ("chat", VLLM_ROUTER | VLLM_ROUTERS_CHATS | {"return_hidden_states": False}),
    ("chat", {"logprobs": False, "stream": False}),
    ("completions", VLLM_ROUTER | {"return_hidden_states": False, "echo": False}),
    ("responses", SMGS_RESPONSES | {"store": True}),
    ("tokenize", {"continue_final_message": False}),
]
"""All that vllm-router 0.1.17 and SMG 1.13 add to a request. They add nothing to messages and embeddings."""


@pytest.mark.parametrize(("endpoint", "fields"), ROUTERS, ids=str)
async def test_what_routers_add_is_accepted(server: Server, endpoint: Endpoint, fields: dict[str, Any]) -> None:
    _, path, body = REQUESTS[endpoint]
    assert set(await answer(server, path, body | fields)) == set(await answer(server, path, body))
    if endpoint != "tokenize":
        first, second = server.engine.submitted[-2:]
        assert (first.tokens, first.grammar, first.max_tokens) == (second.tokens, second.grammar, second.max_tokens)
        assert replace(first.params, seed=0) == replace(second.params, seed=0)
        rendered = await post(server, f"{path}/render", body | fields)
        assert rendered.status_code == 200


async def test_a_top_p_of_0_and_a_seed_of_minus_1(server: Server) -> None:
    for endpoint in ("chat", "completions", "responses"):
        _, path, body = REQUESTS[endpoint]
        for _ in range(2):
            await answer(server, path, body | {"top_p": 0, "temperature": 1, "seed": -1})
        first, second = (submit.params for submit in server.engine.submitted[-2:])
        assert first.temperature == 0.0
        assert -1 not in (first.seed, second.seed)
        assert first.seed != second.seed
    await answer(server, "/v1/messages", {"model": MODEL, "messages": [USER], "max_tokens": 3, "top_p": 0})
    assert server.engine.submitted[-1].params.temperature == 0.0


async def test_a_usage_that_openrouters_field_asks_for(server: Server) -> None:
    for include in (True, False):
        response = await post(
            server, "/v1/chat/completions", REQUESTS["chat"][2] | {"stream": True, "usage": {"include": include}}
        )
        *_, before_end, end = events(await response.get_data(as_text=False))
        assert end == "[DONE]"
        assert ("usage" in before_end and not before_end["choices"]) == include


# Paths without /v1


async def test_every_inference_endpoint_has_a_path_without_v1(server: Server) -> None:
    bodies = {path: body for _, path, body in REQUESTS.values() if path.startswith("/v1/")}
    bodies["/v1/messages"] = {"model": MODEL, "messages": [USER], "max_tokens": 3}
    bodies["/v1/messages/count_tokens"] = {"model": MODEL, "messages": [USER]}
    bodies["/v1/responses/input_tokens"] = {"model": MODEL, "input": "Hello"}
    for path, body in bodies.items():
        assert set(await answer(server, path.removeprefix("/v1"), body)) == set(await answer(server, path, body))
    stored = (await answer(server, "/responses", REQUESTS["responses"][2]))["id"]
    for path in ("/models", f"/models/{MODEL}", f"/responses/{stored}", f"/responses/{stored}/input_items"):
        short, long = [await server.client.get(each) for each in (path, f"/v1{path}")]
        assert short.status_code == long.status_code == 200
        assert await short.get_data() == await long.get_data()
    assert (await server.client.delete(f"/responses/{stored}")).status_code == 200


async def test_models_are_not_started_or_stopped_without_v1(server: Server) -> None:
    for action in ("start", "stop"):
        assert (await post(server, f"/models/{action}", {"model": MODEL})).status_code == 404
        assert (await server.client.get(f"/models/{action}")).status_code == 404


# The end of an answer


async def test_a_stop_token_ends_the_answer_before_its_text(server: Server) -> None:
    tokens = server.encode("One two three four")
    server.engine.answer = lambda submit: [Output(submit.request_id, list(tokens))]
    for endpoint in ("chat", "completions"):
        _, path, body = REQUESTS[endpoint]
        found = await answer(server, path, body | {"stop_token_ids": [tokens[2]], "logprobs": None})
        [choice] = found["choices"]
        assert (choice.get("text") or choice["message"]["content"]) == server.tokenizer.text(tokens[:2])
        assert choice["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] == 3, "the token counts, as an end token does"
    assert server.engine.cancelled[-1] == server.engine.submitted[-1].request_id
    assert server.engine.num_active == 0


def test_stop_tokens_do_not_depend_on_how_tokens_arrive(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("One two three two five. Done", parse_special=False)
    two = tokens[1]
    assert tokens.count(two) == 2
    for min_tokens, kept in ((0, 1), (2, 3), (4, len(tokens))):
        for size in range(1, len(tokens) + 1):
            choice = Choice(tokenizer.piece, ["Done"], stop_tokens={two}, min_tokens=min_tokens)
            deltas = [choice.push(Output(1, tokens[i : i + size])) for i in range(0, len(tokens), size)]
            text = "".join(getattr(event, "text", "") for delta in deltas for event in delta.events)
            assert text == tokenizer.text(tokens[:kept]).removesuffix("Done")
            assert choice.finish_reason == "stop"
            assert choice.num_tokens == min(kept + 1, len(tokens))


async def test_a_stop_token_must_be_in_the_vocabulary(server: Server) -> None:
    _, path, body = REQUESTS["chat"]
    param, message = await refusal(server, path, body | {"stop_token_ids": [server.tokenizer.vocab_size]})
    assert (param, "vocabulary" in message) == ("stop_token_ids", True)


# The end of the prompt


async def prompt(server: Server, endpoint: Endpoint, fields: dict[str, Any]) -> str:
    _, path, body = REQUESTS[endpoint]
    found = await answer(server, path, body | fields)
    if endpoint == "apply-template":
        return str(found["prompt"])
    tokens = found["tokens"] if endpoint == "tokenize" else server.engine.submitted[-1].tokens
    return server.tokenizer.text(tokens)


@pytest.mark.parametrize("endpoint", ["chat", "tokenize", "apply-template"])
async def test_a_prompt_ends_as_its_fields_say(server: Server, endpoint: Endpoint) -> None:
    messages = {"messages": [USER, BEGUN]}
    whole = await prompt(server, endpoint, messages)
    assert whole.endswith("assistant\nOnce upon <|im_end|>\n<|im_start|>assistant\n")
    for generation in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": None}):
        continued = await prompt(server, endpoint, messages | {"continue_final_message": True} | generation)
        assert continued == whole.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    closed = await prompt(server, endpoint, messages | {"add_generation_prompt": False})
    assert closed == whole.removesuffix("<|im_start|>assistant\n")


async def test_a_continued_answer_is_only_the_new_text(server: Server) -> None:
    _, path, body = REQUESTS["chat"]
    server.answers("a time.")
    found = await answer(server, path, body | {"messages": [USER, BEGUN], "continue_final_message": True})
    assert found["choices"][0]["message"]["content"] == "a time."


CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"messages": [USER, BEGUN], "add_generation_prompt": True}, "'add_generation_prompt'"),
        ({"messages": [USER]}, "role 'assistant', not 'user'"),
        ({"messages": [USER, BEGUN | {"tool_calls": [CALL]}]}, "tool calls"),
    ],
    ids=["both", "not an assistant's", "a call"],
)
@pytest.mark.parametrize("endpoint", ["chat", "tokenize", "apply-template"])
async def test_what_cannot_be_continued_is_refused(
    server: Server, endpoint: Endpoint, fields: dict[str, Any], part: str
) -> None:
    _, path, body = REQUESTS[endpoint]
    param, message = await refusal(server, path, body | fields | {"continue_final_message": True})
    assert (param, part in message) == ("continue_final_message", True)


TRIMMING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "content", ["", "x", " x ", "a\n", "<|im_end|>", "</s>", "x <|im_", "\ue000", "a<|im_end|>\ue000"]
)
def test_any_text_is_continued_where_it_ends(tokenizer: Tokenizer, content: str) -> None:
    """Whatever the template trims or the text contains, the prompt ends with the text's own end."""
    for source in (None, TRIMMING):
        template = ChatTemplate(source, tokenizer)
        messages = [USER, {"role": "assistant", "content": content}]
        tokens = template.render_tokens(messages, end=PromptEnd.OPEN_MESSAGE)
        text = tokenizer.text(tokens)
        mark = "<assistant>" if source else "assistant\n"
        assert text.rpartition(mark)[2] == (content.lstrip() if source else content)
        whole = template.render_tokens([*messages[:-1], {"role": "assistant", "content": content + "\u241f"}])
        assert tokenizer.text(whole).startswith(text + "\u241f")


def test_a_template_that_leaves_the_final_message_out_refuses_it(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateRefusal, match="cannot be continued"):
        ChatTemplate(FORGETFUL, tokenizer).render_tokens([USER, BEGUN], end=PromptEnd.OPEN_MESSAGE)


# Reasoning


THINKING = "{{ enable_thinking is defined and enable_thinking }}|{{ reasoning_effort | default('none given') }}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "False|none given"),
        ({"enable_thinking": True}, "True|none given"),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}}, "False|none given"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "True|none given"),
        ({"reasoning_effort": "high"}, "True|high"),
        ({"reasoning_effort": "high", "enable_thinking": False}, "False|high"),
        ({"reasoning": {"effort": "low"}}, "True|low"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "low"}, "True|low"),
        ({"reasoning": {"enabled": True}}, "True|none given"),
        ({"reasoning": {"enabled": False, "exclude": False}}, "False|none given"),
        ({"reasoning": {"max_tokens": 100}}, "True|none given"),
        ({"reasoning": {"exclude": True}}, "False|none given"),
        ({"reasoning": {"effort": "none"}}, "False|none"),
        ({"reasoning": {}}, "False|none given"),
    ],
    ids=str,
)
def test_reasoning_is_turned_on_and_off(tokenizer: Tokenizer, fields: dict[str, Any], expected: str) -> None:
    request = parse(ChatRequest, REQUESTS["chat"][2] | fields)
    tokens = ChatTemplate(THINKING, tokenizer).render_tokens([USER], variables=request.template_variables())
    assert tokenizer.text(tokens) == expected


async def test_responses_and_token_endpoints_have_enable_thinking_too(server: Server) -> None:
    for endpoint in ("responses", "tokenize", "apply-template"):
        _, path, body = REQUESTS[endpoint]
        await answer(server, path, body | {"enable_thinking": True})
        kwargs = {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}
        param, message = await refusal(server, path, body | kwargs)
        assert (param, "contradict" in message) == ("enable_thinking", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning"),
        ({"reasoning": {"exclude": 1}}, "reasoning.exclude"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"enable_thinking": 1}, "enable_thinking"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
    ],
    ids=str,
)
async def test_what_is_not_served_is_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    _, path, body = REQUESTS["chat"]
    assert (await refusal(server, path, body | fields))[0] == param
