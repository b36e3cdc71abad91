"""GET /v1/live: events of the described shape, and who sees which names."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from quart_trio.testing.connections import TestHTTPConnection as Connection
from trio.testing import MockClock

from api.http.access import Access
from api.protocols.live.answer import PING_SECONDS
from api.protocols.live.types import LiveEvent
from api.protocols.live.view import rendered
from api.serving.live import MAX_FEEDS_OF_TENANT, Latencies, ModelScene, Scene
from api.tenants import store
from api.tenants.database import database
from api.tenants.directory import Directory
from api.tenants.store import Change
from api.text.tokenizer import Tokenizer
from scheduler.messages import Snapshot, Watch
from tests.api.fakes import MODEL, Server, Stream, chat

SNAPSHOT = Snapshot(
    [(0.02, [("ann", 30, 0, 0, 0), ("bob", 0, 2, 4, 1)]), (0.01, [("bob", 0, 1, 0, 0), ("eve", 0, 3, 0, 0)])],
    {"ann": (30, 0), "bob": (0, 4), "eve": (0, 3)},
    {
        "page_tokens": 32,
        "total": 6,
        "free": 1,
        "cached": 1,
        "held": 2,
        "shared": 2,
        "host": 7,
        "disk": 8,
        "tenants": {"ann": (1, 2), "bob": (1, 2), "eve": (0, 2)},
        "map": [("held", "ann"), ("shared", ""), ("shared", ""), ("held", "bob"), ("cached", "eve"), ("free", "")],
    },
    {
        "running": 3,
        "waiting": 2,
        "tenants": [
            {"tenant": "ann", "priority": 1, "running": 1, "waiting": 1, "weight": 2.0, "service": 9.0, "credit": 3.0},
            {"tenant": "bob", "priority": 1, "running": 1, "waiting": 0, "weight": 1.0, "service": 30.0, "credit": 6.0},
            {"tenant": "eve", "priority": 1, "running": 1, "waiting": 1, "weight": 3.0, "service": 10.0, "credit": 2.0},
            {"tenant": "eve", "priority": 2, "running": 0, "waiting": 0, "weight": 3.0, "service": 1.0, "credit": None},
        ],
    },
    {"kv_tokens": 192, "kv_max": 1024, "state": "steady"},
)
RATES = {"ann": (10.0, 0.0), "bob": (0.0, 4.0), "eve": (0.0, 3.0)}
SCENE = Scene(0, 5.0, [ModelScene(MODEL, "ready", SNAPSHOT.steps, SNAPSHOT, 1 << 30, RATES)])


def seen(viewer: str | None, scene: Scene = SCENE) -> dict[str, Any]:
    """The only model of an event, which is valid."""
    event = rendered(scene, Latencies(by_tenant=True), viewer)
    LiveEvent.model_validate_json(orjson.dumps(event))
    assert event["sees_all"] is (viewer is None)
    model: dict[str, Any] = event["models"][0]
    return model


def test_the_owner_sees_all_names() -> None:
    model = seen(None)
    assert model["steps"][0] == {"seconds": 0.02, "rows": [["ann", 30, 0, 0, 0], ["bob", 0, 2, 4, 1]]}
    assert model["pages"]["tenants"].keys() == {"ann", "bob", "eve"}
    assert [cell["tenant"] for cell in model["pages"]["map"]] == ["ann", None, None, "bob", "eve", None]
    assert [(each["name"], each["priority"]) for each in model["queue"]["tenants"]] == [
        ("ann", "default"),
        ("bob", "default"),
        ("eve", "default"),
        ("eve", "batch"),
    ]
    assert model["memory"] == {"kv_tokens": 192, "kv_max": 1024, "resident_bytes": 1 << 30, "state": "steady"}
    assert model["tokens_per_s"] == {"prompt": 10.0, "answer": 7.0}


def test_an_engine_that_fails_to_report_has_an_error() -> None:
    assert seen(None)["error"] is None
    model = seen("ann", Scene(0, 5.0, [ModelScene(MODEL, "ready", [], None, 1 << 30, {}, "It failed.")]))
    assert [model[name] for name in ("error", "pages", "queue", "memory")] == ["It failed.", None, None, None]


def test_a_tenant_sees_its_own_name_and_the_sum_of_the_others() -> None:
    model = seen("ann")
    assert [step["rows"] for step in model["steps"]] == [
        [["ann", 30, 0, 0, 0], ["others", 0, 2, 4, 1]],
        [["others", 0, 4, 0, 0]],
    ]
    assert model["pages"]["tenants"] == {"ann": {"held": 1, "shared": 2}, "others": {"held": 1, "shared": 2}}
    assert [cell["tenant"] for cell in model["pages"]["map"]] == ["ann", None, None, "others", "others", None]
    ann, others, batch = model["queue"]["tenants"]
    assert (ann["name"], ann["service"], ann["credit"]) == ("ann", 9.0, 3.0)
    assert others == {
        "name": "others",
        "priority": "default",
        "running": 2,
        "waiting": 1,
        "weight": 4.0,
        "service": 15.0,  # a cost of 30 * 1 + 10 * 3, for a weight of 4
        "credit": 3.0,
    }
    assert (batch["name"], batch["priority"], batch["credit"]) == ("others", "batch", None)
    assert model["tokens_per_s"] == {"prompt": 10.0, "answer": 0.0}


@given(viewer=st.sampled_from(["ann", "bob", "eve", "nobody"]))
def test_no_tenant_sees_the_name_of_another_and_sums_stay(viewer: str) -> None:
    model, whole = seen(viewer), seen(None)
    text = orjson.dumps(model).decode()
    assert all(f'"{name}"' not in text for name in {"ann", "bob", "eve"} - {viewer})
    for mine, all_ in zip(model["steps"], whole["steps"], strict=True):
        assert [sum(each) for each in zip(*(row[1:] for row in mine["rows"]), strict=True)] == [
            sum(each) for each in zip(*(row[1:] for row in all_["rows"]), strict=True)
        ]
    for name in ("running", "waiting"):
        assert sum(each[name] for each in model["queue"]["tenants"]) == sum(
            each[name] for each in whole["queue"]["tenants"]
        )


def test_a_model_without_an_engine_has_a_state_only() -> None:
    model = seen("ann", Scene(0, 5.0, [ModelScene(MODEL, "loading", [], None, 0, {})]))
    assert (model["state"], model["pages"], model["queue"], model["memory"]) == ("loading", None, None, None)


# -- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def directory() -> Iterator[Directory]:
    directory = Directory()
    yield directory
    directory.close()


def key_of(name: str, **change: Any) -> str:
    with database() as connection:
        return store.add(connection, name, Change(**change))


@asynccontextmanager
async def feed(server: Server, key: str = "") -> AsyncIterator[Stream]:
    connection = server.client.request("/v1/live", headers={"Authorization": f"Bearer {key}"} if key else {})
    assert isinstance(connection, Connection)
    async with connection:
        await connection.send_complete()
        stream = Stream(connection)
        yield stream
        await stream.leave()


async def event(stream: Stream) -> LiveEvent:
    data = await stream.write()
    assert data is not None
    return LiveEvent.model_validate_json(data.removeprefix(b"data: "))


async def test_events_come_as_the_engine_shows_something(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    async with feed(server) as stream:
        first = await event(stream)
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert (first.sees_all, first.models[0].name, first.models[0].pages) == (True, MODEL, None)
        assert server.engine.posted == [Watch(True)]
        server.engine.on_message(SNAPSHOT)
        [model] = (await event(stream)).models
        assert model.pages is not None
        assert (len(model.steps), model.pages.host) == (2, 7)
    assert server.engine.posted == [Watch(True), Watch(False)]


async def test_a_quiet_feed_sends_comments(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    async with feed(Server(tokenizer)) as stream:
        await event(stream)
        start = trio.current_time()
        assert await stream.write() == b": ping\n\n"
        assert await stream.write() == b": ping\n\n"
        assert trio.current_time() - start == pytest.approx(2 * PING_SECONDS, abs=1.0)


async def test_prompts_and_answers_are_not_shown(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    server.answers("xylophone")
    async with feed(server) as stream:
        first = await stream.write()
        await server.post(chat("marimba"))
        data = await stream.write()
        assert first is not None
        assert data is not None
        assert b"xylophone" not in first + data
        assert b"marimba" not in first + data
        latency = LiveEvent.model_validate_json(data.removeprefix(b"data: ")).models[0].latency
        assert latency.ttft is not None


async def test_keys_decide_who_sees_what(tokenizer: Tokenizer, directory: Directory) -> None:
    """In real time: keys are looked up in a thread."""
    server = Server(tokenizer, access=Access(directory, demands_keys=True))
    ann, root = key_of("ann"), key_of("root", is_admin=True)
    async with feed(server) as stream:
        refusal = orjson.loads(await stream.write() or b"")
        assert (stream.status, refusal["error"]["code"]) == (401, "invalid_api_key")
    assert server.engine.posted == []
    server.answers()
    server.url = "/v1/chat/completions"
    await server.post(chat(), {"Authorization": f"Bearer {root}"})
    for key, sees_all in ((ann, False), (root, True)):
        async with feed(server, key) as stream:
            await event(stream)
            server.engine.on_message(SNAPSHOT)
            shown = await event(stream)
            assert shown.sees_all is sees_all
            assert shown.models[0].pages is not None
            names = {"ann", "bob", "eve"} if sees_all else {"ann", "others"}
            assert set(shown.models[0].pages.tenants) == names
            assert (shown.models[0].latency.ttft is not None) is sees_all, "only root has sent a request"


async def test_too_many_feeds_are_refused(tokenizer: Tokenizer, directory: Directory) -> None:
    server = Server(tokenizer, access=Access(directory, demands_keys=True))
    ann, bob = key_of("ann"), key_of("bob")
    scenes = [server.live.scenes("ann") for _ in range(MAX_FEEDS_OF_TENANT)]
    for each in scenes:
        await anext(each)
    async with feed(server, ann) as stream:
        refusal = orjson.loads(await stream.write() or b"")
        assert (stream.status, refusal["error"]["code"]) == (503, "too_many_feeds")
        assert stream.headers["retry-after"] == "10"
    async with feed(server, bob) as stream:
        await event(stream)
    for each in scenes:
        await each.aclose()


async def test_a_server_that_shuts_down_ends_feeds_and_opens_none(
    tokenizer: Tokenizer, autojump_clock: MockClock
) -> None:
    server = Server(tokenizer)
    async with feed(server) as stream:
        await event(stream)
        server.fleet.drain()
        assert await stream.write() is None
    async with feed(server) as stream:
        refusal = orjson.loads(await stream.write() or b"")
        assert (stream.status, refusal["error"]["code"]) == (503, "shutting_down")
