"""POST /api/chat and /api/generate over a fake engine: what a request asks for, and how its answer is written."""

from typing import Any

import orjson
import pytest
import trio
from trio.testing import MockClock

from api.models.defaults import ModelDefaults
from api.protocols.ollama.conversation import chat_spec
from api.protocols.ollama.request import OllamaChatRequest
from api.protocols.ollama.types import OllamaChatAnswer, OllamaError, OllamaGenerateAnswer
from api.serving.spec import Conversation
from api.tenants.tenant import Priority
from api.text.dialects import Tool, ToolUse
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Queue, Step
from tests.api.answer_shapes import SHAPES
from tests.api.fakes import INFO, MODEL, Server

CHAT, GENERATE = "/api/chat", "/api/generate"
QUESTION = [{"role": "user", "content": "Hello"}]
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer, url=CHAT)
    server.answers("Fine.")
    return server


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": QUESTION} | fields


async def lines(server: Server, body: dict[str, Any], url: str = CHAT) -> list[dict[str, Any]]:
    """The lines of a streamed answer, which is the default."""
    server.url = url
    response = await server.post(body)
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    assert response.headers["content-type"] == "application/x-ndjson"
    assert data.endswith(b"\n")
    kind = OllamaChatAnswer if url == CHAT else OllamaGenerateAnswer
    for line in data.splitlines():
        kind.model_validate_json(line)
    return [orjson.loads(line) for line in data.splitlines()]


async def whole(server: Server, body: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    server.url = url
    response = await server.post(body | {"stream": False})
    data = await response.get_data(as_text=False)
    assert response.status_code == 200, data
    assert response.headers["content-type"] == "application/json"
    (OllamaChatAnswer if url == CHAT else OllamaGenerateAnswer).model_validate_json(data)
    found: dict[str, Any] = orjson.loads(data)
    return found


async def refused(server: Server, body: dict[str, Any], url: str = CHAT) -> tuple[int, str]:
    """The status and the text of an error, which is in Ollama's form."""
    server.url = url
    response = await server.post(body)
    error = OllamaError.model_validate_json(await response.get_data(as_text=False))
    return response.status_code, error.error


# Answers


async def test_a_chat_streams_lines_by_default(server: Server) -> None:
    *news, last = await lines(server, chat())
    assert "".join(each["message"]["content"] for each in news) == "Fine."
    assert all(each["model"] == MODEL and not each["done"] for each in news)
    assert last["done"]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done_reason"], last["eval_count"]) == ("stop", len(server.encode("Fine.")))
    assert last["prompt_eval_count"] == len(server.engine.submitted[0].tokens)


async def test_a_whole_answer_has_the_same_text_and_counts(server: Server) -> None:
    answer = await whole(server, chat(stream=None) | {"options": None})
    assert answer["message"] == {"role": "assistant", "content": "Fine."}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["created_at"].endswith("Z")


async def test_durations_are_those_of_the_stations(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    """It waits for 2 s in the engine, then for half a second for its first token, then has a token each second."""
    server = Server(tokenizer)
    found: dict[str, Any] = {}

    async def ask() -> None:
        found.update(await whole(server, chat()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.engine.wait_active()
        await trio.sleep(2.5)
        [submit] = server.engine.submitted
        for number, token in enumerate(server.encode("One two three")):
            server.engine.on_message(Step([Output(submit.request_id, [token], queue_seconds=2.0 * (number == 0))]))
            await trio.sleep(1)
        server.engine.emit([], "length")
    assert found["done_reason"] == "length"
    assert (found["prompt_eval_duration"], found["eval_duration"]) == (500_000_000, 2_000_000_000)
    assert (found["total_duration"], found["load_duration"]) == (5_500_000_000, 0)
    assert found["eval_count"] == 3


async def test_a_silent_stream_gets_empty_lines_and_no_comments(
    tokenizer: Tokenizer, autojump_clock: MockClock
) -> None:
    server = Server(tokenizer, url=CHAT)
    async with server.stream(chat()) as stream:
        await server.engine.wait_active()
        server.engine.on_message(Queue([server.engine.submitted[0].request_id]))
        data = await stream.write()
        assert data is not None
        assert orjson.loads(data)["message"] == {"role": "assistant", "content": ""}
        server.engine.emit(server.encode("Fine."), "stop")
        rest = b""
        while (more := await stream.write()) is not None:
            rest += more
    assert [orjson.loads(line)["done"] for line in rest.splitlines()] == [False, True]


async def test_an_engine_that_fails_ends_a_stream_with_an_error(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, url=CHAT)
    async with server.stream(chat()) as stream:
        await server.engine.wait_active()
        server.engine.emit(server.encode("Fine"))
        assert orjson.loads(await stream.write() or b"")["message"]["content"] == "Fine"
        server.engine.emit([], "error", error="it broke")
        last = await stream.write()
        assert last is not None
        assert "it broke" in OllamaError.model_validate_json(last).error
        assert await stream.write() is None


@pytest.mark.parametrize("streams", [True, False])
async def test_calls_are_whole_and_their_arguments_are_objects(server: Server, streams: bool) -> None:
    server.answers("Let me look.\n" + CALL + "\n" + CALL)
    if streams:
        *news, last = await lines(server, chat(tools=[CLOCK]))
        assert last["done_reason"] == "stop"
        calls = [call for each in news for call in each["message"].get("tool_calls", [])]
        text = "".join(each["message"]["content"] for each in news)
    else:
        message = (await whole(server, chat(tools=[CLOCK])))["message"]
        calls, text = message["tool_calls"], message["content"]
    assert text.strip() == "Let me look."
    assert [call["function"] for call in calls] == [
        {"index": number, "name": "clock", "arguments": {"zone": "UTC"}} for number in (0, 1)
    ]
    assert len({call["id"] for call in calls}) == 2


async def test_log_probabilities(server: Server) -> None:
    *news, _ = await lines(server, chat(logprobs=True, top_logprobs=1))
    entries = [entry for each in news for entry in each.get("logprobs", [])]
    assert "".join(entry["token"] for entry in entries) == "Fine."
    assert all(len(entry["top_logprobs"]) == 1 for entry in entries)
    answer = await whole(server, chat(logprobs=True))
    assert [entry["logprob"] for entry in answer["logprobs"]] == [-0.5] * len(server.encode("Fine."))


async def test_thoughts_have_their_own_field(tokenizer: Tokenizer) -> None:
    shape = SHAPES["keys-and-values"]
    server = Server(tokenizer, defaults=ModelDefaults(chat_template=shape.source))
    server.answers(shape.thought + shape.text)
    for url, body in ((CHAT, chat(think=True)), (GENERATE, {"model": MODEL, "prompt": "Hello", "think": True})):
        answer = await whole(server, body, url)
        found = answer["message"] if url == CHAT else answer
        assert found["thinking"] == "Hm."
        assert found.get("content", found.get("response")) == "Sunny."
        news = await lines(server, body, url)
        parts = [each["message"] if url == CHAT else each for each in news]
        assert "".join(part.get("thinking", "") for part in parts) == "Hm."


# What a chat asks for


async def test_options_become_sampling_parameters(server: Server) -> None:
    options = {
        "num_predict": 7,
        "num_ctx": 512,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "typical_p": 0.5,
        "seed": 11,
        "stop": ["x"],
        "repeat_penalty": 1.5,
        "repeat_last_n": 5,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "mirostat": 0,
    }
    await whole(server, chat(options=options, keep_alive="5m"))
    [submit] = server.engine.submitted
    assert submit.max_tokens == 7
    named = {name: value for name, value in options.items() if name not in ("num_predict", "num_ctx", "stop")}
    assert {name: getattr(submit.params, name) for name in named} == named


@pytest.mark.parametrize("value", [-1, -2, 0])
async def test_an_answer_without_a_limit_may_fill_the_context(server: Server, value: int) -> None:
    await whole(server, chat(options={"num_predict": value, "top_k": -1, "seed": -1}))
    [submit] = server.engine.submitted
    assert submit.max_tokens == INFO.ctx_len - len(submit.tokens)
    assert submit.params.top_k == 0
    assert submit.params.seed >= 0


async def test_what_the_servers_flags_decide_gets_a_warning(server: Server) -> None:
    response = await server.post(chat(options={"num_gpu": 1, "num_thread": 4, "num_keep": 4}, keep_alive=-1))
    assert response.status_code == 200
    assert response.headers["cortex-warning"] == "decided by the server's flags: num_gpu, num_thread, keep_alive"
    assert "cortex-warning" not in (await server.post(chat())).headers


@pytest.mark.parametrize(
    ("format_", "text"), [("json", '{"a": 1}'), ({"type": "object", "properties": {"a": {"const": 1}}}, '{"a": 1}')]
)
async def test_a_format_becomes_a_grammar(server: Server, format_: Any, text: str) -> None:
    server.answers(text)
    assert (await whole(server, chat(format=format_)))["message"]["content"] == text
    [submit] = server.engine.submitted
    assert submit.grammar
    assert (await lines(server, chat(format=format_)))[0]["message"]["content"]
    await whole(server, chat(format=""))
    assert not server.engine.submitted[-1].grammar


async def test_results_answer_the_calls_of_their_tools(server: Server) -> None:
    """Ollama's older messages have no ids: a result belongs to the next call of its tool that has no result."""
    names = "clock", "weather", "clock"
    calls = [{"function": {"name": name, "arguments": {"n": n}}} for n, name in enumerate(names)]
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "Hm."},
        {"role": "tool", "tool_name": "weather", "content": "Sunny."},
        {"role": "tool", "tool_name": "clock", "content": "Noon."},
        {"role": "tool", "content": "Midnight."},
        {"role": "tool", "tool_name": "nobody", "content": "Lost."},
    ]
    spec = chat_spec(OllamaChatRequest.model_validate({"model": MODEL, "messages": messages}))
    assert isinstance(spec.prompt, Conversation)
    _, answer, *results = spec.prompt.messages
    assert [call.arguments for call in answer.tool_calls] == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
    ids = [call.id for call in answer.tool_calls]
    assert [result.tool_call_id for result in results] == [ids[1], ids[0], ids[2], "call_unknown"]
    assert answer.reasoning == "Hm."
    await whole(server, chat(messages=messages))


def test_ids_of_calls_are_kept_if_they_are_sent() -> None:
    messages: list[Any] = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [{"id": id_, "function": {"name": "clock"}} for id_ in ("one", "two")]},
        {"role": "tool", "tool_call_id": "two", "content": "Noon."},
        {"role": "tool", "tool_call_id": "elsewhere", "content": "Noon."},
    ]
    spec = chat_spec(OllamaChatRequest.model_validate({"model": MODEL, "messages": messages}))
    assert isinstance(spec.prompt, Conversation)
    assert [message.tool_call_id for message in spec.prompt.messages[2:]] == ["two", "elsewhere"]


def test_tools_may_be_called() -> None:
    spec = chat_spec(OllamaChatRequest.model_validate(chat(tools=[CLOCK])))
    assert spec.tool_use == ToolUse((Tool("clock", None, {"type": "object"}, False),), "auto", True)


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"reasoning_effort": "low", "enable_thinking": True}),
    ],
)
def test_think_becomes_variables_of_the_template(think: Any, variables: dict[str, Any]) -> None:
    spec = chat_spec(OllamaChatRequest.model_validate(chat(think=think)))
    assert isinstance(spec.prompt, Conversation)
    assert spec.prompt.variables == variables


async def test_a_final_assistant_message_is_continued(server: Server) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "Fi"}]
    await whole(server, chat(messages=begun))
    assert server.tokenizer.text(server.engine.submitted[0].tokens).endswith("assistant\nFi")


async def test_extensions_are_those_of_other_endpoints(server: Server) -> None:
    await whole(server, chat(priority="batch", cache_salt="mine"))
    assert server.engine.submitted[0].priority == Priority.BATCH
    assert server.engine.submitted[0].cache_salt


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"options": {"num_ctx": 513}}, "512 tokens"),
        ({"options": {"temprature": 1}}, "options.temprature"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"vocab_only": True}}, "options.vocab_only"),
        ({"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}, "images are not supported"),
        ({"messages": [{"role": "nobody", "content": "?"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "?", "tool_calls": [{"function": {"name": "f"}}]}]}, "tool calls"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "not the assistant's"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "?"}], "format": "json"}, "match a format"),
        ({"tools": [CLOCK, CLOCK]}, "same name"),
        ({"think": True}, "does not support thinking"),
        ({"think": "much"}, "think"),
        ({"format": "xml"}, "format"),
        ({"truncate": True}, "truncate"),
        ({"shift": True}, "shift"),
        ({"keep_alive": "soon"}, "duration"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"n": 2}, "n"),
    ],
)
async def test_what_is_not_served_is_refused(server: Server, fields: dict[str, Any], part: str) -> None:
    status, message = await refused(server, chat() | fields)
    assert status == 400
    assert part in message
    assert not server.engine.submitted


async def test_an_unknown_model_is_refused_with_ollamas_words(server: Server) -> None:
    for url in (CHAT, GENERATE, "/api/embed", "/api/embeddings", "/api/show"):
        body = {"model": "nobody"} | ({"input": "x"} if url == "/api/embed" else {})
        status, message = await refused(server, body, url)
        assert status == 404
        assert message.startswith("model 'nobody' not found")
        assert MODEL in message


async def test_errors_of_all_of_ollamas_paths_have_its_form(server: Server) -> None:
    assert await refused(server, {}, "/api/pull") == (404, "Invalid URL (POST /api/pull)")
    assert (await refused(server, {}, "/api/tags"))[0] == 405
    assert (await refused(server, b"{", CHAT))[0] == 400  # type: ignore[arg-type]


async def test_a_request_without_a_question_loads_the_model(server: Server) -> None:
    [loaded] = await lines(server, {"model": MODEL, "keep_alive": "10m"})
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    loaded = await whole(server, {"model": MODEL, "prompt": ""}, GENERATE)
    assert (loaded["response"], loaded["done_reason"]) == ("", "load")
    assert not server.engine.submitted
    for keep_alive in (0, "0s"):
        status, message = await refused(server, {"model": MODEL, "keep_alive": keep_alive}, GENERATE)
        assert status == 400
        assert "/v1/models/stop" in message


# What a prompt asks for


def prompt(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once upon"} | fields


async def test_a_prompt_is_a_question_with_a_system_prompt(server: Server) -> None:
    *news, last = await lines(server, prompt(system="Be brief."), GENERATE)
    assert "".join(each["response"] for each in news) == "Fine."
    assert (last["done"], last["response"]) == (True, "")
    text = server.tokenizer.text(server.engine.submitted[0].tokens)
    assert "Be brief." in text
    assert text.index("Be brief.") < text.index("Once upon")


async def test_a_raw_prompt_is_used_as_it_is(server: Server) -> None:
    answer = await whole(server, prompt(raw=True, format="json"), GENERATE)
    assert answer["response"] == "Fine."
    [submit] = server.engine.submitted
    assert server.tokenizer.text(submit.tokens) == "Once upon"
    assert submit.grammar


async def test_a_suffix_needs_a_model_that_fills_in_the_middle(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    status, message = await refused(server, prompt(suffix="the end."), GENERATE)
    assert status == 400
    assert "suffix" in message
    monkeypatch.setattr(server.tokenizer, "fill_in_the_middle", lambda before, after: [1, *before, 2, *after, 3])
    await whole(server, prompt(suffix="the end."), GENERATE)
    before, after = server.encode("Once upon"), server.engine.submitted[0].tokens
    assert after[: len(before) + 2] == [1, *before, 2]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": ["aGk="]}, "images are not supported"),
        ({"width": 64}, "width"),
        ({"raw": True, "system": "Be brief."}, "'system' cannot be combined with 'raw'"),
        ({"suffix": "x", "think": True}, "'think' cannot be combined with 'suffix'"),
        ({"messages": QUESTION}, "messages"),
    ],
)
async def test_what_a_prompt_cannot_have_is_refused(server: Server, fields: dict[str, Any], part: str) -> None:
    status, message = await refused(server, prompt() | fields, GENERATE)
    assert status == 400
    assert part in message


async def test_values_that_ask_for_nothing_are_accepted(server: Server) -> None:
    nothing = {"template": "", "context": [], "images": [], "raw": False, "suffix": "", "truncate": False}
    await whole(server, prompt(**nothing), GENERATE)
    await whole(server, chat(tools=[], messages=[{"role": "user", "content": "Hello", "images": []}]))
