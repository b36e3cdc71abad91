"""The render endpoints: the prompt tokens of a request, as its generation has them, without generating anything."""

from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from quart import Response

from api.protocols.rendered import RenderedRequest, RenderedRequests
from api.serving.limits import Limiter
from api.tenants.tenant import Limits
from api.text.tokenizer import Tokenizer
from tests.api.fakes import INFO, MODEL, Server

USER: Final = {"role": "user", "content": "Hello"}
FUNCTION: Final = {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}
TOOL: Final = {"type": "function", "function": FUNCTION}
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODIES: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"model": MODEL, "messages": [USER]},
    COMPLETION: {"model": MODEL, "prompt": "Hello"},
    RESPONSE: {"model": MODEL, "input": "Hello"},
}


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer)
    server.answers("Fine.")
    return server


async def post(server: Server, path: str, body: Any) -> Response:
    return await server.client.post(path, data=orjson.dumps(body), headers={"Content-Type": "application/json"})


async def render(server: Server, path: str, fields: dict[str, Any]) -> Any:
    response = await post(server, f"{path}/render", BODIES[path] | fields)
    text = await response.get_data(as_text=False)
    assert response.status_code == 200, text
    (RenderedRequests if path == COMPLETION else RenderedRequest).model_validate_json(text)
    return orjson.loads(text)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"stream": True, "n": 3, "max_tokens": 4}),
        (CHAT, {"tools": [TOOL]}),
        (CHAT, {"tools": [TOOL], "tool_choice": "none"}),
        (CHAT, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}),
        (CHAT, {"reasoning_effort": "high", "chat_template_kwargs": {"x": 1}}),
        (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, USER]}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "Once "}], "continue_final_message": True}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (COMPLETION, {}),
        (COMPLETION, {"prompt": ["One", "Two"], "n": 2}),
        (COMPLETION, {"prompt": [1, 2, 3], "best_of": 3}),
        (COMPLETION, {"echo": True, "max_tokens": 0}),
        (RESPONSE, {}),
        (RESPONSE, {"instructions": "Be brief.", "tools": [{"type": "function"} | FUNCTION]}),
        (RESPONSE, {"input": [USER, {"role": "assistant", "content": "Hi."}, USER], "truncation": "auto"}),
    ],
    ids=str,
)
async def test_the_tokens_are_those_of_the_generation(server: Server, path: str, fields: dict[str, Any]) -> None:
    found = await render(server, path, fields)
    assert server.engine.posted == []
    prompts = found if path == COMPLETION else [found]
    assert (await post(server, path, BODIES[path] | fields)).status_code == 200
    generated = [submit.tokens for submit in server.engine.submitted]
    per_prompt = len(generated) // len(prompts)
    assert [prompt["token_ids"] for prompt in prompts] == generated[::per_prompt]
    assert {prompt["sampling_params"]["n"] for prompt in prompts} == {per_prompt}
    assert {prompt["stream"] for prompt in prompts} == {fields.get("stream", False)}


async def test_the_answer_has_vllms_names(server: Server) -> None:
    fields = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.25,
        "stop": ["end"],
        "seed": 3,
        "logit_bias": {"5": -1},
        "priority": 7,
        "cache_salt": "mine",
    }
    found = await render(server, CHAT, fields)
    sampling = found.pop("sampling_params")
    assert found.pop("request_id").startswith("chatcmpl-")
    assert found.pop("token_ids")
    assert found == {
        "features": None,
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": "mine",
        "priority": 1,
        "kv_transfer_params": None,
    }
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "logit_bias")
    assert [sampling[name] for name in names] == [7, 0.5, 0.9, 5, 0.1, 1.25, 3, ["end"], {"5": -1}]
    plain = await render(server, CHAT, {})
    room = INFO.ctx_len - len(plain["token_ids"])
    assert (plain["priority"], plain["sampling_params"]["seed"]) == (0, None)
    assert plain["sampling_params"]["max_tokens"] == room


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {"unknown": 1}),
        (CHAT, {"temperature": 9}),
        (CHAT, {"model": "nobody"}),
        (CHAT, {"messages": [USER | {"content": "word " * 600}]}),
        (CHAT, {"max_tokens": 2, "min_tokens": 3}),
        (CHAT, {"tools": [{"type": "function", "function": FUNCTION | {"strict": True, "parameters": {"type": 3}}}]}),
        (CHAT, {"tool_choice": "required"}),
        (CHAT, {"no_stop_trim": True}),
        (CHAT, {"stop_token_ids": [1 << 30]}),
        (COMPLETION, {"prompt": [1 << 30]}),
        (COMPLETION, {"suffix": "x", "echo": True}),
        (RESPONSE, {"previous_response_id": "resp_none"}),
        (RESPONSE, {"input": []}),
    ],
    ids=str,
)
async def test_what_the_generation_refuses_is_refused(server: Server, path: str, fields: dict[str, Any]) -> None:
    errors = []
    for each in (f"{path}/render", path):
        response = await post(server, each, BODIES[path] | fields)
        errors.append((response.status_code, orjson.loads(await response.get_data(as_text=False))))
    assert errors[0] == errors[1]
    assert errors[0][0] in (400, 404)
    assert server.engine.posted == []


async def test_a_model_without_text_is_refused(server: Server) -> None:
    server.engine.info = replace(INFO, generates=False, pooling="mean", embedding_size=1)
    response = await post(server, f"{CHAT}/render", BODIES[CHAT])
    assert (response.status_code, b"unsupported_model" in await response.get_data(as_text=False)) == (400, True)


async def test_it_counts_toward_no_limit(tokenizer: Tokenizer) -> None:
    """Routers ask before each request, which would then count twice."""
    server = Server(tokenizer, limiter=Limiter(default=Limits(requests_per_minute=1, tokens_per_minute=100)))
    server.answers("Fine.")
    for _ in range(3):
        await render(server, CHAT, {})
    assert [(await post(server, CHAT, BODIES[CHAT])).status_code for _ in range(2)] == [200, 429]
    await render(server, CHAT, {})
    metrics = await (await server.client.get("/metrics")).get_data(as_text=True)
    assert f'vllm:prompt_tokens_total{{model_name="{MODEL}"}} {len(server.engine.submitted[0].tokens)}.0' in metrics


async def test_a_full_or_draining_server_renders(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, max_waiting=0)
    server.engine.info = replace(INFO, max_seqs=0)
    assert (await post(server, CHAT, BODIES[CHAT])).status_code == 429
    await render(server, CHAT, {})
    server.fleet.drain()
    assert (await post(server, CHAT, BODIES[CHAT])).status_code == 503
    await render(server, CHAT, {})
