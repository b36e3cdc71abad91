"""The API conforms to its own OpenAPI document, for handwritten and for generated requests."""

import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any
from zlib import crc32

import httpx
import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic import BaseModel
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.generation.meta import CoveragePhaseData, CoverageScenario

from api.http.openapi import document, page
from api.http.operation import taken as names_taken
from api.http.operations import OPERATIONS
from api.protocols import types as common
from api.protocols.chat import types as answers
from api.protocols.completions import types as completion_answers
from api.protocols.embeddings import types as embedding_answers
from api.protocols.files import types as file_answers
from api.protocols.management import types as management_answers
from api.protocols.management.version import Version
from api.protocols.messages import types as message_answers
from api.protocols.rendered import RenderedRequest, RenderedRequests
from api.protocols.responses import types as response_answers
from api.protocols.tokens import types as token_answers
from tests.api.servers import MODEL, SECONDS, CortexServer

MAX_CHOICES = 2
"""Keeps generated requests fast. The context of 192 tokens bounds each choice."""
MAX_INPUTS = 8

Body = dict[str, Any]


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = (f"--alias={MODEL}", "--ctx-len=192", "--pooling=mean")
    with CortexServer(tmp_path_factory.mktemp("server"), *flags, model=tiny_model_path) as server:
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Keeps its connection for the next request. A new connection takes longer than most requests."""
    with requests.Session() as session:
        session.trust_env = False  # else it reads the environment for each request
        yield session


@pytest.fixture
def client(server: CortexServer) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=url, headers=server.owner, timeout=SECONDS) as client:
        yield client


# The document and the routes


def test_every_route_is_documented_and_nothing_else() -> None:
    from api.http.app import create_app
    from api.serving.fleet import Fleet

    routes = {
        (method.lower(), re.sub(r"<[^<>]*?(\w+)>", r"{\1}", str(rule.rule)))
        for rule in create_app(Fleet(max_waiting=0)).url_map.iter_rules()
        for method in rule.methods or ()
        if method in ("GET", "POST", "DELETE") and rule.endpoint != "static"
    }
    described = {(method, path) for path, methods in document(OPERATIONS)["paths"].items() for method in methods}
    short = {(each.method.lower(), path) for each in OPERATIONS for path in each.paths if path != each.path}
    not_described = {("get", path) for path in ("/", "/assets/{file}", "/docs", "/metrics", "/openapi.json")}
    assert routes - described == not_described | short
    assert described <= routes


def test_operations_of_other_servers_have_paths_without_v1() -> None:
    assert {each.name for each in OPERATIONS if each.path.startswith("/v1/") and not each.short_path} == {
        "start_model",
        "stop_model",
    }


def test_the_document_and_the_page_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from api.http import operations

    assert operations._openapi_document() is operations._openapi_document()
    assert operations._page() is operations._page()


def test_the_name_of_an_operation_is_not_a_path_parameter() -> None:
    """An operation with such a parameter documents the status 405, for a value that names another operation."""
    taken = {each.name: names for each in OPERATIONS if (names := names_taken(each, OPERATIONS))}
    assert taken == {
        "get_response": ["input_tokens", "render"],
        "delete_response": ["input_tokens", "render"],
        "get_model": ["start", "stop"],
    }
    for each in OPERATIONS:
        if each.name in taken:
            assert "405" in document(OPERATIONS)["paths"][each.path][each.method.lower()]["responses"]


def test_operations_have_unique_names_and_unique_routes() -> None:
    assert len({each.name for each in OPERATIONS}) == len(OPERATIONS)
    assert len({(each.method, each.path) for each in OPERATIONS}) == len(OPERATIONS)


def test_type_names_do_not_contain_module_names() -> None:
    assert not [name for name in document(OPERATIONS)["components"]["schemas"] if name.startswith("api__")]


def test_the_page_is_self_contained() -> None:
    text = page(OPERATIONS)
    assert "src=" not in text
    assert "//" not in text.replace("<!--", "")
    for name, schema in document(OPERATIONS)["components"]["schemas"].items():
        assert f'id="{name}"' in text
        for field in schema.get("properties", ()):
            assert f"<code>{field}</code>" in text


def test_the_document_and_the_page_are_served(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json() == document(OPERATIONS)
    response = client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == page(OPERATIONS)


# Answers match their types

TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CHATS: list[Body] = [
    {},
    {"n": 2, "logprobs": True, "top_logprobs": 2, "temperature": 1.5},
    {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": [1]}}}},
    {"stop": "e", "user": "me"},
]
MESSAGES: list[Body] = [
    {},
    {"max_tokens": 0},
    {"system": "Be brief.", "stop_sequences": ["e"]},
    {
        "tools": [{"name": "clock", "input_schema": {"type": "object", "properties": {}}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 60,
    },
    {"output_config": {"format": {"type": "json_schema", "schema": {"const": [1]}}}, "max_tokens": 20},
]
COMPLETIONS: list[Body] = [
    {},
    {"prompt": ["a", "b"], "n": 2, "logprobs": 3, "echo": True},
    {"prompt": [1, 2, 3], "best_of": 3},
    {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 0},
]
RESPONSES: list[Body] = [
    {},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"tools": [{"type": "function", "name": "clock"}], "tool_choice": "required", "max_output_tokens": 60},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": [1]}}}},
    {"instructions": "Be brief.", "reasoning": {"effort": "low"}, "metadata": {"a": "b"}},
]


def chat(fields: Body) -> Body:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 6, **fields}


def completion(fields: Body) -> Body:
    return {"model": MODEL, "prompt": "Once", "max_tokens": 6, **fields}


def response_request(fields: Body) -> Body:
    return {"model": MODEL, "input": "Hi.", "max_output_tokens": 6, **fields}


def check_type(model: type[BaseModel], body: bytes | str) -> None:
    model.model_validate_json(body)


@pytest.mark.parametrize("fields", CHATS, ids=str)
def test_chat_completions_match_their_types(client: httpx.Client, fields: Body) -> None:
    whole = client.post("/v1/chat/completions", json=chat(fields))
    check_type(answers.ChatCompletion, whole.content)
    for event in events_of(client, "/v1/chat/completions", chat(fields)):
        check_type(answers.ChatCompletionChunk, event)


@pytest.mark.parametrize("fields", COMPLETIONS, ids=str)
def test_completions_match_their_types(client: httpx.Client, fields: Body) -> None:
    whole = client.post("/v1/completions", json=completion(fields))
    check_type(completion_answers.TextCompletion, whole.content)
    if "best_of" not in fields:
        for event in events_of(client, "/v1/completions", completion(fields)):
            check_type(completion_answers.TextCompletionChunk, event)


@pytest.mark.parametrize("fields", MESSAGES, ids=str)
def test_messages_match_their_types(client: httpx.Client, fields: Body) -> None:
    whole = client.post("/v1/messages", json=chat(fields))
    check_type(message_answers.MessageAnswer, whole.content)
    stream = client.post("/v1/messages", json=chat(fields) | {"stream": True})
    *events, nothing = stream.text.split("\n\n")
    assert nothing == ""
    for event in events:
        check_type(message_answers.MessageEvent, event.split("\ndata: ")[1])


@pytest.mark.parametrize("fields", RESPONSES, ids=str)
def test_responses_match_their_types(client: httpx.Client, fields: Body) -> None:
    whole = client.post("/v1/responses", json=response_request(fields))
    check_type(response_answers.Response, whole.content)
    stream = client.post("/v1/responses", json=response_request(fields) | {"stream": True})
    events = list(event_data(stream.text))
    for event in events:
        check_type(response_answers.ResponseEvent, event)
    assert orjson.loads(events[-1])["type"] in ("response.completed", "response.incomplete")
    place = f"/v1/responses/{whole.json()['id']}"
    check_type(response_answers.Response, client.get(place).content)
    check_type(response_answers.ResponseItems, client.get(f"{place}/input_items").content)
    check_type(response_answers.DeletedResponse, client.delete(place).content)
    check_type(common.Error, client.get(place).content)


def event_data(stream: str) -> Iterator[str]:
    """The data of each event that contains a JSON object."""
    for event in stream.split("\n\n"):
        _, mark, data = ("\n" + event).partition("\ndata: {")
        if mark:
            yield "{" + data


def events_of(client: httpx.Client, path: str, body: Body) -> list[str]:
    response = client.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [event.removeprefix("data: ") for event in events]


def test_the_other_answers_match_their_types(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi."}]}
    texts = {"model": MODEL, "input": ["a", "b c"], "dimensions": 3}
    found: list[tuple[type[BaseModel], httpx.Response]] = [
        (management_answers.ModelList, client.get("/v1/models")),
        (management_answers.Model, client.get(f"/v1/models/{MODEL}")),
        (management_answers.Health, client.get("/healthz")),
        (management_answers.Readiness, client.get("/health")),
        (Version, client.get("/version")),
        (token_answers.Tokens, client.post("/tokenize", json={"content": "a b"})),
        (token_answers.Tokens, client.post("/tokenize", json=body | {"with_pieces": True, "return_token_strs": True})),
        (token_answers.Text, client.post("/detokenize", json={"tokens": [1, 2]})),
        (token_answers.RenderedPrompt, client.post("/apply-template", json=body)),
        (RenderedRequest, client.post("/v1/chat/completions/render", json=chat({"logit_bias": {"5": 1}}))),
        (RenderedRequests, client.post("/v1/completions/render", json=completion({"prompt": ["a", "b"]}))),
        (RenderedRequest, client.post("/v1/responses/render", json=response_request({"stream": True}))),
        (embedding_answers.Embeddings, client.post("/v1/embeddings", json=texts)),
        (embedding_answers.Embeddings, client.post("/v1/embeddings", json=texts | {"encoding_format": "base64"})),
        (common.Error, client.get("/v1/models/nobody")),
        (message_answers.TokenCount, client.post("/v1/messages/count_tokens", json={"model": MODEL} | body)),
        (response_answers.InputTokens, client.post("/v1/responses/input_tokens", json={"input": "Hi."})),
        (message_answers.MessageError, client.post("/v1/messages", json=body)),
        (file_answers.FileObject, client.post("/v1/files", data={"purpose": "vision"}, files={"file": b"1"})),
        (file_answers.FileList, client.get("/v1/files")),
        (common.Error, client.get("/v1/files/nothing")),
    ]
    for model, response in found:
        check_type(model, response.content)


# Generated requests

load_all_checks()
TOO_STRICT: list[Any] = [CHECKS.get_one("positive_data_acceptance")]
"""Valid fields may exclude each other or exceed the context, which the schemas do not express."""
IN_FORMS: list[Any] = [*TOO_STRICT, CHECKS.get_one("negative_data_rejection")]
"""Some invalid values leave no trace in a form, such as an empty list."""
MAX_FIELDS = 6
PROMPTS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/messages": "messages",
    "/v1/responses": "input",
}
SANE: Body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}], "prompt": "Hi.", "input": "Hi."}
SEEN: Counter[tuple[str, int]] = Counter()
STREAMED: Counter[str] = Counter()
ALIKE: Counter[tuple[str, ...]] = Counter()
IS_FUZZ = not settings().derandomize


def load(openapi: Body, mode: str, **phases: Any) -> schemathesis.BaseSchema:
    generation = {"deterministic": not IS_FUZZ, "mode": mode}
    config = SchemathesisConfig.from_dict({"generation": generation, "phases": phases})
    return schemathesis.openapi.from_dict(openapi, config=config)


def with_sane_prompts() -> Body:
    """The document with one prompt only for each operation. The others take long to generate."""
    openapi = deepcopy(document(OPERATIONS))
    for path, name in (PROMPTS | {"/v1/messages/count_tokens": "messages"}).items():
        body = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = openapi["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        schema["properties"][name] = {"const": SANE[name]}
    return openapi


# Renders are read like the requests that generate, and a live feed does not end.
anything = load(document(OPERATIONS), "all").exclude(path_regex="(chat/completions|responses)/render$|/live$")
# `anything` has a valid request for each part of the schemas already.
generating = load(with_sane_prompts(), "positive", coverage={"enabled": IS_FUZZ}).include(
    path_regex="completions|embeddings|messages|responses$"
)
sensible = generating.exclude(path_regex="/render$")  # their requests are those of the endpoints that generate


def tame(body: Any) -> Any:
    """Replaces most generated model names, which do not exist, and limits choices and inputs, which take long."""
    if isinstance(body, dict):
        if isinstance(body.get("input"), list):
            del body["input"][MAX_INPUTS:]
        if isinstance(body.get("model"), str) and len(body["model"]) % 8:
            body["model"] = MODEL
        for name in ("n", "best_of"):
            if isinstance(body.get(name), int) and body[name] > MAX_CHOICES:
                body[name] = MAX_CHOICES
    return body


@anything.hook("map_body")
def tame_anything(context: schemathesis.HookContext, body: Any) -> Any:
    """As `tame`, but never inserts the served model into start and stop: the other tests need it."""
    is_lifecycle = context.operation is not None and context.operation.path in ("/v1/models/start", "/v1/models/stop")
    return body if is_lifecycle else tame(body)


@anything.hook
def filter_case(context: schemathesis.HookContext, case: "schemathesis.Case[Any]") -> bool:
    """Keeps one of the requests that differ from the schema in the same way at the same place. `make fuzz` keeps all.

    Of the wrong types at a place, it keeps two: the first, and one of the others, not always of the same type.
    """
    data = case.meta.phase.data if case.meta is not None else None
    if IS_FUZZ or not isinstance(data, CoveragePhaseData):
        return True
    kind = (case.operation.label, data.scenario.value, data.location or "", data.parameter or "", data.description)
    ALIKE[kind] += 1
    if data.scenario is CoverageScenario.INCORRECT_TYPE and ALIKE[kind] > 1:
        return ALIKE[kind] == 2 + crc32(repr(kind).encode()) % 3
    return ALIKE[kind] == 1


@sensible.hook("map_body")
def tame_sensible(context: schemathesis.HookContext, body: Any) -> Any:
    """Inserts a prompt that fits and keeps only a few of the other fields, because many exclude each other."""
    random = Random(repr(sorted(body)))
    given = [name for name, value in body.items() if value is not None]
    kept = random.sample(given, min(MAX_FIELDS, len(given)))
    path = context.operation.path if context.operation is not None else ""
    if path == "/v1/embeddings":
        return tame({name: body[name] for name in kept} | {"model": MODEL, "input": body["input"]})
    needed: Body = {name: value for name, value in SANE.items() if name in body or name == PROMPTS.get(path)}
    if path in PROMPTS:  # the others generate nothing
        needed["stream"] = random.random() < 0.5
        needed |= {"max_output_tokens": 8, "previous_response_id": None} if "responses" in path else {"max_tokens": 8}
    return tame({name: body[name] for name in kept} | needed)


def check(case: "schemathesis.Case[Any]", server: CortexServer, session: requests.Session) -> None:
    """Asserts that there is no 5xx, and no status, content type or body that is not documented."""
    url = f"http://127.0.0.1:{server.port}"
    response = case.call(url, session=session, headers=server.owner, timeout=SECONDS)
    case.validate_response(response, excluded_checks=IN_FORMS if case.path == "/v1/files" else TOO_STRICT)
    SEEN[case.path, response.status_code] += 1
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        operation = next(each for each in OPERATIONS if each.path == case.path)
        assert operation.chunk is not None
        STREAMED[case.path] += 1
        for event in event_data(response.text):
            kind = operation.error if "error" in orjson.loads(event) else operation.chunk
            kind.model_validate_json(event)


patient = settings(suppress_health_check=list(HealthCheck))


@anything.parametrize()
@settings(patient, max_examples=patient.max_examples if IS_FUZZ else 30)
def test_any_request_gets_a_documented_answer(
    case: "schemathesis.Case[Any]", server: CortexServer, session: requests.Session
) -> None:
    check(case, server, session)


@sensible.parametrize()
@patient
def test_a_valid_request_gets_a_documented_answer(
    case: "schemathesis.Case[Any]", server: CortexServer, session: requests.Session
) -> None:
    check(case, server, session)


def test_the_server_holds_nothing_after_all_tests(server: CortexServer) -> None:
    server.assert_nothing_is_held()
    assert SEEN["/v1/responses/{response_id}", 404] > 30
    assert SEEN["/v1/responses/{response_id}/input_items", 404] > 10
    for path in PROMPTS:
        assert SEEN[path, 200] > 30, "else hardly anything was tested"
        assert STREAMED[path] > 10, "else an undocumented event might not be noticed"
    for path in ("/v1/messages/count_tokens", "/v1/embeddings"):
        assert SEEN[path, 200] > 30
