"""API keys: who may call what, in the form that the SDKs understand."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import trio
from quart import Response

from api.http.access import REFUSALS, Access
from api.http.operation import Scope
from api.http.operations import OPERATIONS
from api.serving.observer import Observers
from api.serving.usage import UsageObserver
from api.tenants import store
from api.tenants.database import database
from api.tenants.directory import Directory, Refusal
from api.tenants.keys import new_key
from api.tenants.store import Change
from api.tenants.tenant import OWNER, Priority, Tenant
from api.tenants.usage import Used, totals
from api.tenants.usage_buffer import UsageBuffer
from api.text.tokenizer import Tokenizer
from scheduler.messages import Report
from tests.api.fakes import MODEL, Server
from tests.api.sdks import Sdks

CACHE = {"page_tokens": 32, "held_pages": 3, "cached_pages": 10, "free_pages": 51}
SECRET = "cortex-owner-secret"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def directory() -> Iterator[Directory]:
    directory = Directory()
    yield directory
    directory.close()


@pytest.fixture
async def server(tokenizer: Tokenizer, directory: Directory) -> Server:
    """A server that demands keys."""
    server = Server(tokenizer, access=Access(directory, SECRET, demands_keys=True))
    server.answers()
    return server


@pytest.fixture
async def open_server(tokenizer: Tokenizer, directory: Directory) -> Server:
    """A server that demands no keys."""
    server = Server(tokenizer, access=Access(directory, SECRET))
    server.answers()
    return server


def add(name: str, **change: Any) -> str:
    with database() as connection:
        return store.add(connection, name, Change(**change))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def error_of(response: Response) -> tuple[int, str | None, str]:
    error = (await response.get_json())["error"]
    return response.status_code, error.get("code"), error["message"]


# Keys


def missing() -> str:
    return " "  # the SDKs refuse an empty key


def wrong() -> str:
    return new_key()


def expired() -> str:
    return add("alice", expiry=(1.0,))


def revoked() -> str:
    key = add("alice")
    with database() as connection:
        store.revoke(connection, "alice")
    return key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "This server needs an API key"),
        (wrong, "Incorrect API key provided"),
        (expired, "This API key has expired"),
        (revoked, "This API key has been revoked"),
    ],
)
async def test_the_sdks_raise_an_authentication_error(server: Server, make: Any, message: str) -> None:
    key = make()
    sdks = Sdks(server, api_key=key)
    with pytest.raises(openai.AuthenticationError, match=message) as error:
        await sdks.call(sdks.openai.chat.completions.create, **CHAT)
    assert (error.value.code, error.value.type) == ("invalid_api_key", "invalid_request_error")
    assert error.value.response.headers["www-authenticate"] == "Bearer"
    with pytest.raises(anthropic.AuthenticationError, match=message) as refused:
        await sdks.call(sdks.anthropic.messages.create, **CHAT, max_tokens=5)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["error"]["type"] == "authentication_error"
    assert not server.engine.posted


async def test_a_key_is_accepted_in_both_headers_at_once_after_it_was_added(server: Server) -> None:
    add("bob")
    sdks = Sdks(server, api_key=add("alice", weight=3.0, priority=Priority.BATCH))
    await sdks.call(sdks.openai.chat.completions.create, **CHAT, user="mallory")
    await sdks.call(sdks.anthropic.messages.create, **CHAT, max_tokens=5, metadata={"user_id": "mallory"})
    for submit in server.engine.submitted:
        assert (submit.tenant, submit.weight, submit.priority) == ("alice", 3.0, Priority.BATCH)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "bearer  KEY "},
        {"x-api-key": "KEY"},
        {"Authorization": "Basic YTpi", "x-api-key": "KEY"},
        {"Authorization": "Bearer ", "x-api-key": "KEY"},
    ],
)
async def test_forms_of_the_headers(server: Server, headers: dict[str, str]) -> None:
    key = add("alice")
    response = await server.post(CHAT, {name: value.replace("KEY", key) for name, value in headers.items()})
    assert response.status_code == 200


async def test_a_body_is_not_read_without_a_key(server: Server) -> None:
    assert (await error_of(await server.post_raw(b"no JSON")))[:2] == (401, "invalid_api_key")


async def test_unknown_keys_do_not_make_the_server_read_often(
    server: Server, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = 0

    def refresh() -> None:
        nonlocal refreshes
        refreshes += 1

    monkeypatch.setattr(directory, "refresh", refresh)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(server.post, CHAT, bearer("wrong"))
    assert 1 <= refreshes <= 3


async def test_without_keys_any_key_is_ignored(open_server: Server) -> None:
    for headers in ({}, bearer("not-needed"), bearer(add("alice"))):
        assert (await open_server.post(CHAT | {"user": "bob"}, headers)).status_code == 200
    assert {submit.tenant for submit in open_server.engine.submitted} == {"user:bob"}


async def test_web_pages_of_an_allowed_origin_may_send_a_key(tokenizer: Tokenizer, directory: Directory) -> None:
    checked = Access(directory, demands_keys=True)
    server = Server(tokenizer, cors_origins=("https://a.example",), access=checked)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-api-key"}
    response = await server.client.options(server.url, headers={"Origin": "https://a.example"} | asked)
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed
    assert "x-api-key" in allowed
    response = await server.post(CHAT, {"Origin": "https://a.example"})
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"


async def test_what_a_key_has_used_is_counted(tokenizer: Tokenizer, directory: Directory) -> None:
    usage = UsageBuffer()
    access = Access(directory, demands_keys=True)
    server = Server(tokenizer, access=access, observers=Observers(UsageObserver(usage)))
    server.answers("Fine.")
    prompt, answer = 0, 0
    for body in (CHAT, CHAT | {"model": "an-alias", "stream": True}):
        response = await server.post(body, bearer(add(f"alice{len(server.engine.submitted)}")))
        await response.get_data(as_text=False)
        prompt += len(server.engine.submitted[-1].tokens)
        answer += len(server.encode("Fine."))
    await server.post(CHAT)
    usage.flush()
    with database() as connection:
        assert totals(connection, "model") == [(MODEL, Used(2, prompt, 0, answer))]
        assert [name for name, _ in totals(connection, "key")] == ["alice0", "alice1"]


# Tenants without keys


@pytest.mark.parametrize(
    ("fields", "tenant"),
    [
        ({}, "address:<local>"),
        ({"user": "bob"}, "user:bob"),
        ({"user": ""}, "address:<local>"),
        ({"safety_identifier": "carl"}, "user:carl"),
        ({"user": "bob", "safety_identifier": "carl"}, "user:bob"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_without_keys_the_user_or_the_address_is_the_tenant(
    open_server: Server, path: str, fields: dict[str, str], tenant: str
) -> None:
    body = CHAT if "chat" in path else {"model": MODEL, "input": "Hi."}
    open_server.url = path
    response = await open_server.post(body | fields)
    assert response.status_code == 200
    assert [submit.tenant for submit in open_server.engine.submitted] == [tenant]


async def test_the_names_of_tenants_are_short_and_printable(open_server: Server) -> None:
    for user in ("x" * 128, "x" * 129, "a\nb", "\ud800"):
        await open_server.post(b'{"user": "%s", %s' % (user.encode("unicode_escape"), b'"model": "m"}'))
        body = CHAT | {"user": user.encode(errors="replace").decode()}
        assert (await open_server.post(body)).status_code == 200
    names = [submit.tenant for submit in open_server.engine.submitted]
    assert names[0] == "user:" + "x" * 128
    assert all(len(name) <= len("user:") + 128 and name.isprintable() for name in names)
    assert len(set(names)) == 4


# Scopes


async def test_each_operation_needs_the_key_that_its_scope_says(server: Server) -> None:
    user, admin = add("alice"), add("root", is_admin=True)
    expected = {
        Scope.PUBLIC: (False, False, False),
        Scope.METRICS: (True, False, False),
        Scope.USER: (True, False, False),
        Scope.OWNER: (True, True, False),
    }
    for operation in OPERATIONS:
        path = operation.path.replace("{response_id}", "resp_x").replace("{name}", MODEL)
        refused = []
        for key in ("", user, admin):
            method = "head" if operation.is_endless else operation.method.lower()
            response = await getattr(server.client, method)(
                path,
                headers=bearer(key) | {"Content-Type": "application/json"},
                data=b"{}" if operation.method == "POST" else b"",
            )
            refused.append(response.status_code in (401, 403))
        assert tuple(refused) == expected[operation.scope], operation.name


async def test_metrics_need_no_key_if_the_flag_says_so(directory: Directory) -> None:
    for demands_keys in (True, False):
        for is_public in (True, False):
            checked = Access(directory, demands_keys=demands_keys, public_metrics=is_public)
            assert checked._needs_key(Scope.METRICS) is (demands_keys and not is_public)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (missing, (403, 403)),
        (wrong, (401, 403)),
        (expired, (401, 401)),
        (revoked, (401, 401)),
        (lambda: add("alice"), (403, 403)),
        (lambda: add("alice", is_admin=True), (404, 404)),
        (lambda: SECRET, (404, 404)),
        (lambda: SECRET + "x", (401, 403)),
    ],
)
async def test_managing_needs_an_admin_key_or_the_secret_with_and_without_keys(
    server: Server, open_server: Server, make: Any, status: tuple[int, int]
) -> None:
    key = make()
    for managed, expected in zip((server, open_server), status, strict=True):
        managed.url = "/v1/models/stop"
        for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"Host": "127.0.0.1:39281"}):
            response = await managed.post({"model": "none"}, headers | (bearer(key) if key else {}))
            assert response.status_code == expected


async def test_paths_and_counters_are_for_those_who_may_see_them(server: Server, open_server: Server) -> None:
    async def health(asked: Server, key: str) -> dict[str, Any]:
        response = await asked.client.get("/healthz", headers=bearer(key) if key else {})
        body: dict[str, Any] = await response.get_json()
        return {**body["models"][0], "server_pid": body["pid"]}

    server.engine.report = open_server.engine.report = Report({"running": 2, "waiting": 5}, CACHE)
    admin = add("root", is_admin=True)
    for key in (SECRET, admin):
        await server.client.get("/v1/responses/x", headers=bearer(key))  # reads the new key
        model = await health(server, key)
        assert model["path"] is not None
        assert model["kv"] is not None
        assert model["server_pid"] == os.getpid()
    model = await health(server, add("alice"))
    assert [model[name] for name in ("path", "engine_pid", "kv", "statistics", "server_pid")] == [None] * 5
    assert model["status"] == "ready"
    model = await health(open_server, "")
    assert model["path"] is None
    assert model["kv"] is not None


# Models


async def test_a_tenant_may_use_only_its_models_under_any_name(server: Server) -> None:
    allowed, by_alias, other = add("a", models=(MODEL,)), add("b", models=("an-alias",)), add("c", models=("x", "y"))
    for name in (MODEL, "an-alias"):
        for key in (allowed, by_alias):
            assert (await server.post(CHAT | {"model": name}, bearer(key))).status_code == 200
        status, code, message = await error_of(await server.post(CHAT | {"model": name}, bearer(other)))
        assert (status, code) == (403, "model_not_allowed")
        assert message == f"This API key may not use the model {name!r}. It may use 'x', 'y'."
    assert (await error_of(await server.post(CHAT | {"model": "none"}, bearer(allowed))))[:2] == (
        403,
        "model_not_allowed",
    )
    assert (await error_of(await server.post(CHAT | {"model": "x"}, bearer(other))))[:2] == (404, "model_not_found")
    for path, body in (
        ("/v1/completions", {"model": MODEL, "prompt": "a"}),
        ("/v1/embeddings", {"model": MODEL, "input": "a"}),
        ("/v1/messages", CHAT | {"max_tokens": 1}),
        ("/v1/messages/count_tokens", CHAT),
        ("/v1/responses", {"model": MODEL, "input": "a"}),
        ("/v1/responses/input_tokens", {"input": "a"}),
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": CHAT["messages"]}),
    ):
        server.url = path
        assert (await server.post(body, bearer(other))).status_code == 403, path


async def test_the_anthropic_sdk_raises_a_permission_error_for_a_model(server: Server) -> None:
    sdks = Sdks(server, api_key=add("alice", models=("x",)))
    with pytest.raises(anthropic.PermissionDeniedError, match="may not use the model"):
        await sdks.call(sdks.anthropic.messages.create, **CHAT, max_tokens=5)
    with pytest.raises(openai.PermissionDeniedError, match="may not use the model"):
        await sdks.call(sdks.openai.chat.completions.create, **CHAT)


# Kept responses


async def test_a_response_belongs_to_its_tenant(server: Server) -> None:
    mine, other = Sdks(server, add("alice")), Sdks(server, add("bob"))
    kept = await mine.call(mine.openai.responses.create, model=MODEL, input="Hi.")
    item = {"type": "item_reference", "id": kept.output[0].id}

    for call in (
        other.openai.responses.retrieve,
        other.openai.responses.delete,
        other.openai.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError, match="not found"):
            await other.call(call, response_id=kept.id)
    with pytest.raises(openai.BadRequestError, match="not found") as error:
        await other.call(other.openai.responses.create, model=MODEL, input="More.", previous_response_id=kept.id)
    assert error.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError, match="not found"):
        await other.call(other.openai.responses.create, model=MODEL, input=[item])

    assert (await mine.call(mine.openai.responses.retrieve, response_id=kept.id)).id == kept.id
    await mine.call(mine.openai.responses.create, model=MODEL, input=[item])
    await mine.call(mine.openai.responses.create, model=MODEL, input="More.", previous_response_id=kept.id)
    await mine.call(mine.openai.responses.delete, response_id=kept.id)


async def test_without_keys_a_response_belongs_to_all(open_server: Server) -> None:
    sdks = Sdks(open_server)
    kept = await sdks.call(sdks.openai.responses.create, model=MODEL, input="Hi.", user="alice")
    assert (await sdks.call(sdks.openai.responses.retrieve, response_id=kept.id)).id == kept.id


def test_every_refusal_has_a_message() -> None:
    assert set(REFUSALS) == {None, *Refusal}


def test_a_batch_runs_while_its_owner_could_read_it(directory: Directory) -> None:
    add("alice", weight=3.0)
    directory.refresh()
    with_keys, without = Access(directory, demands_keys=True), Access(directory)
    alice = with_keys.tenant_of("alice", "alice")
    assert alice is not None
    assert (alice.name, alice.weight) == ("alice", 3.0)
    assert with_keys.tenant_of("owner", "owner") == OWNER
    assert with_keys.tenant_of("bob", "bob") is None
    assert with_keys.tenant_of("", "user:ann") is None, "nobody could read it before the server demanded keys"
    assert without.tenant_of("", "user:ann") == Tenant("user:ann")
    assert without.tenant_of("alice", "alice") is None
