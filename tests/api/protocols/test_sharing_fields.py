"""The fields about sharing: `priority`, `service_tier` and `cache_salt`, on every endpoint that has them."""

from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from quart import Response

from api.http.access import Access
from api.http.app import create_app
from api.tenants.tenant import Priority, Tenant
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embed, Embedded
from tests.api.fakes import INFO, MODEL, Server

USER: Final = {"role": "user", "content": "Hello"}
GENERATING: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [USER], "max_tokens": 3},
}
EMBEDDINGS: Final[dict[str, dict[str, Any]]] = {"/v1/embeddings": {"input": "Hello"}}
BODIES: Final = GENERATING | EMBEDDINGS


@pytest.fixture
def server(tokenizer: Tokenizer) -> Server:
    server = Server(tokenizer)
    server.engine.info = replace(INFO, pooling="mean", embedding_size=1, max_text_tokens=16)
    server.engine.embedded = lambda embed: [Embedded(embed.request_id, ["AAAAAA=="])]
    server.answers("Fine.")
    return server


async def post(server: Server, path: str, **fields: Any) -> Response:
    server.url = path
    return await server.post({"model": MODEL} | BODIES[path] | fields)


async def body(response: Response) -> Any:
    return orjson.loads(await response.get_data(as_text=False))


def last_class(server: Server, path: str) -> int:
    if path in EMBEDDINGS:
        return [each for each in server.engine.posted if isinstance(each, Embed)][-1].priority
    return server.engine.submitted[-1].priority


CLASSES: Final[tuple[tuple[Any, int, int, int], ...]] = (
    (None, 1, 0, 2),
    (0, 1, 0, 2),
    ("interactive", 1, 0, 2),
    (-5, 1, 0, 2),
    ("default", 1, 1, 2),
    ("batch", 2, 2, 2),
    (1, 2, 2, 2),
    (2**40, 2, 2, 2),
)
"""A priority, and the class of the request if its tenant's is `default`, `interactive` and `batch`."""


@pytest.mark.parametrize("path", BODIES)
async def test_a_request_can_only_lower_its_class(server: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for given, default, interactive, batch in CLASSES:
        expected = {Priority.DEFAULT: default, Priority.INTERACTIVE: interactive, Priority.BATCH: batch}
        for highest, served in expected.items():
            monkeypatch.setattr(Access, "tenant", lambda *_, highest=highest: Tenant("a", priority=highest))
            assert (await post(server, path, priority=given)).status_code == 200
            assert last_class(server, path) == served, (given, highest)


@pytest.mark.parametrize("path", BODIES)
async def test_other_priorities_are_refused(server: Server, path: str) -> None:
    values: tuple[Any, ...] = ("high", 0.5, True, [], "")
    for given in values:
        response = await post(server, path, priority=given)
        assert response.status_code == 400
        error = (await body(response))["error"]
        assert "priority" in error["message"]
        assert error.get("param", "priority") == "priority"


TIERS: Final = (
    ("flex", Priority.DEFAULT, 2, "flex"),
    ("flex", Priority.INTERACTIVE, 2, "flex"),
    ("priority", Priority.DEFAULT, 1, "default"),
    ("priority", Priority.INTERACTIVE, 0, "priority"),
    ("fast", Priority.INTERACTIVE, 0, "priority"),
    ("auto", Priority.BATCH, 2, "default"),
    ("scale", Priority.DEFAULT, 1, "default"),
    (None, Priority.INTERACTIVE, 0, "default"),
)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_openais_service_tiers(server: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for tier, highest, served, name in TIERS:
        monkeypatch.setattr(Access, "tenant", lambda *_, highest=highest: Tenant("a", priority=highest))
        answer = await body(await post(server, path, service_tier=tier))
        assert (last_class(server, path), answer["service_tier"]) == (served, name), tier


async def test_the_priority_decides_over_the_service_tier(server: Server) -> None:
    answer = await body(await post(server, "/v1/chat/completions", service_tier="flex", priority="default"))
    assert (last_class(server, "/v1/chat/completions"), answer["service_tier"]) == (1, "default")


@pytest.mark.parametrize("path", GENERATING)
async def test_a_salt_reaches_the_engine(server: Server, path: str) -> None:
    salts = []
    for salt in (None, "one", "two"):
        assert (await post(server, path, cache_salt=salt)).status_code == 200
        salts.append(server.engine.submitted[-1].cache_salt)
    assert salts[0] == ""
    assert len(set(salts)) == 3


@pytest.mark.parametrize("path", GENERATING)
async def test_in_the_scope_of_tenants_each_has_salts_of_its_own(server: Server, path: str) -> None:
    server.app = create_app(server.fleet, cache_scope="tenant")
    server.client = server.app.test_client()
    salts = []
    for user in ("ada", "bob", "ada"):
        names = {"metadata": {"user_id": user}} if path == "/v1/messages" else {"user": user}
        assert (await post(server, path, **names)).status_code == 200
        salts.append(server.engine.submitted[-1].cache_salt)
    assert salts[0] == salts[2] != salts[1]
    assert "" not in salts


@pytest.mark.parametrize("path", GENERATING)
async def test_an_invalid_salt_is_refused(server: Server, path: str) -> None:
    for given in ("", 1, "x" * 513):
        response = await post(server, path, cache_salt=given)
        assert response.status_code == 400
        assert "cache_salt" in (await body(response))["error"]["message"]
