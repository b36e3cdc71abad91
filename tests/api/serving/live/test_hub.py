"""The hub: engines are watched while somebody watches, and each moment is looked at once. In virtual time."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.flags import ModelOptions
from api.serving.fleet import Fleet
from api.serving.live import INTERVAL, MAX_FEEDS, MAX_FEEDS_OF_TENANT, Hub, Scene, TooManyFeedsError
from api.serving.live.hub import FEED_SECONDS
from api.serving.live.scene import RATE_SECONDS
from api.serving.service import ModelService
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.messages import Row, Snapshot, Watch
from tests.api.fakes import INFO, MODEL, PATH, FakeEngine


def snapshot(*rows: Row, seconds: float = 0.1, **queue: Any) -> Snapshot:
    """A snapshot of an engine with one step, or none without rows."""
    steps: list[tuple[float, list[Row]]] = [(seconds, list(rows))] if rows else []
    tokens = {tenant: (prompt, answer + accepted) for tenant, prompt, answer, _, accepted in rows}
    return Snapshot(steps, tokens, {}, queue, {})


class Watching:
    """A fleet with fake engines, and a hub."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fleet = Fleet(max_waiting=8)
        self.hub = Hub(self.fleet, by_tenant=True, clock=lambda: 1000.0 + trio.current_time())
        self._tokenizer = tokenizer
        self.engine = self.add(MODEL)

    def add(self, name: str) -> FakeEngine:
        engine = FakeEngine()
        service = ModelService((name,), self._tokenizer, engine, max_waiting=8)
        self.fleet.adopt(ModelOptions(name, PATH, EngineConfig(str(PATH))), service)
        return engine

    @property
    def asked(self) -> list[bool]:
        """What was asked of the engine: to begin or to end."""
        return [message.on for message in self.engine.posted if isinstance(message, Watch)]

    @asynccontextmanager
    async def feed(self, owner: str = "") -> AsyncIterator["Feed"]:
        async with aclosing(self.hub.scenes(owner)) as scenes:
            yield Feed(scenes)


class Feed:
    def __init__(self, scenes: Any) -> None:
        self._scenes = scenes

    async def next(self) -> Scene | None:
        """The next scene, or None if nothing has changed."""
        found: Scene | None = await anext(self._scenes)
        return found

    async def scene(self) -> Scene:
        found = await self.next()
        assert found is not None
        return found


@pytest.fixture
def watching(tokenizer: Tokenizer) -> Watching:
    return Watching(tokenizer)


async def test_engines_are_watched_while_somebody_watches(watching: Watching, autojump_clock: MockClock) -> None:
    assert watching.asked == []
    async with watching.feed() as one:
        await one.next()
        async with watching.feed() as two:
            await two.next()
            assert watching.hub.num_feeds == 2
            assert watching.asked == [True]
        await one.next()
        assert watching.asked == [True]
    assert watching.asked == [True, False]
    assert watching.hub.num_feeds == 0
    watching.engine.on_message(snapshot(("ann", 1, 0, 0, 0)))  # one that comes too late
    async with watching.feed() as again:
        assert (await again.scene()).models[0].snapshot is None
    assert watching.asked == [True, False, True, False]


async def test_nothing_runs_while_nobody_watches(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as feed:
        await feed.next()
    before = trio.lowlevel.current_statistics().tasks_living
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


async def test_each_step_is_told_once_and_at_most_four_times_a_second(
    watching: Watching, autojump_clock: MockClock
) -> None:
    async with watching.feed() as feed:
        await feed.next()
        await feed.next()
        start = trio.current_time()
        for number in range(8):
            watching.engine.on_message(snapshot(("ann", number, 0, 0, 0)))
            watching.engine.on_message(snapshot(("ann", 100 + number, 0, 0, 0)))
            [model] = (await feed.scene()).models
            assert [rows for _, rows in model.steps] == [[("ann", number, 0, 0, 0)], [("ann", 100 + number, 0, 0, 0)]]
        assert trio.current_time() - start == pytest.approx(2.0)


async def test_a_feed_gets_nothing_while_nothing_changes(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as feed:
        first = await feed.scene()
        assert first.at == pytest.approx(1000.0 + trio.current_time())
        assert [await feed.next() for _ in range(8)] == [None] * 8
        watching.engine.on_message(snapshot(running=1))
        assert (await feed.scene()).models[0].snapshot == snapshot(running=1)
        assert await feed.next() is None


async def test_all_feeds_get_the_same_scene(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as one, watching.feed() as two:
        await one.next()
        await two.next()
        watching.engine.on_message(snapshot(("ann", 1, 0, 0, 0)))
        scenes: list[Scene] = []

        async def look(feed: Feed) -> None:
            scenes.append(await feed.scene())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, one)
            nursery.start_soon(look, two)
        assert scenes[0] is scenes[1]
        assert len(scenes[0].models[0].steps) == 1


async def test_a_slow_feed_misses_scenes_and_harms_nobody(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as fast, watching.feed() as slow:
        await fast.next()
        await slow.next()
        for _ in range(40):
            watching.engine.on_message(snapshot(("ann", 1, 0, 0, 0)))
            await fast.next()
        watching.engine.on_message(snapshot(("ann", 2, 0, 0, 0)))
        [model] = (await slow.scene()).models
        assert [rows for _, rows in model.steps] == [[("ann", 2, 0, 0, 0)]]


async def test_an_engine_that_dies_and_comes_back_is_watched_again(
    watching: Watching, autojump_clock: MockClock
) -> None:
    async with watching.feed() as feed:
        await feed.next()
        watching.engine.on_message(snapshot(running=1))
        await feed.next()
        watching.engine.info = None
        [model] = (await feed.scene()).models
        assert (model.snapshot, model.status) == (None, "loading")
        watching.engine.info = replace(INFO, pid=4322)
        watching.engine.on_ready()
        assert watching.asked == [True, True]
        watching.engine.on_message(snapshot(running=2))
        [model] = (await feed.scene()).models
        assert (model.snapshot, model.status) == (snapshot(running=2), "ready")


async def test_an_engine_that_fails_to_report_shows_its_error_until_it_reports_again(
    watching: Watching, autojump_clock: MockClock
) -> None:
    async with watching.feed() as feed:
        await feed.next()
        watching.engine.on_message(snapshot(running=1))
        await feed.next()
        watching.engine.on_message(Snapshot([], {}, {}, {}, {}, "It failed."))
        [model] = (await feed.scene()).models
        assert (model.snapshot, model.error) == (None, "It failed."), "what it reported before is not true any more"
        watching.engine.info = None
        [model] = (await feed.scene()).models
        assert (model.error, model.status) == ("", "loading")
        watching.engine.info = replace(INFO, pid=4322)
        watching.engine.on_message(Snapshot([], {}, {}, {}, {}, "It failed again."))
        assert (await feed.scene()).models[0].error == "It failed again."
    async with watching.feed() as again:
        assert (await again.scene()).models[0].error == ""
        assert watching.asked == [True, False, True]
        watching.engine.on_message(snapshot(running=2))
        [model] = (await again.scene()).models
        assert (model.snapshot, model.error) == (snapshot(running=2), "")


async def test_models_that_start_and_stop_appear(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as feed:
        await feed.next()
        engine = watching.add("another")
        assert [model.name for model in (await feed.scene()).models] == [MODEL, "another"]
        assert engine.posted == [Watch(True)]
        del watching.fleet._models["another"]
        assert [model.name for model in (await feed.scene()).models] == [MODEL]
        assert engine.posted == [Watch(True), Watch(False)]


async def test_rates_are_averages_of_the_last_seconds(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as feed:
        await feed.next()
        for _ in range(20):
            watching.engine.on_message(snapshot(("ann", 10, 1, 4, 2), ("bob", 20, 0, 0, 0)))
            await trio.sleep(INTERVAL / 2)
            scene = await feed.scene()
        rates = scene.models[0].rates
        assert rates["ann"] == pytest.approx((10 / INTERVAL, 3 / INTERVAL))
        assert rates["bob"] == pytest.approx((20 / INTERVAL, 0))
        await trio.sleep(RATE_SECONDS)
        assert (await feed.scene()).models[0].rates == {}
        assert await feed.next() is None


async def test_a_feed_ends_when_the_server_shuts_down(watching: Watching, autojump_clock: MockClock) -> None:
    async with watching.feed() as feed:
        await feed.next()
        watching.fleet.drain()
        start = trio.current_time()
        with pytest.raises(StopAsyncIteration):
            await feed.next()
        assert trio.current_time() - start <= 2 * INTERVAL
    assert watching.asked == [True, False]


async def test_a_feed_does_not_last_for_ever(watching: Watching, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with aclosing(watching.hub.scenes("")) as scenes:
        async for _ in scenes:
            pass
    assert trio.current_time() - start == pytest.approx(FEED_SECONDS, abs=1.0)
    assert watching.hub.num_feeds == 0


async def fill(watching: Watching, owner: str, number: int) -> list[Any]:
    feeds = [watching.hub.scenes(owner) for _ in range(number)]
    for feed in feeds:
        await anext(feed)
    return feeds


async def test_the_number_of_feeds_is_bounded(watching: Watching, autojump_clock: MockClock) -> None:
    feeds = await fill(watching, "ann", MAX_FEEDS_OF_TENANT)
    with pytest.raises(TooManyFeedsError, match="8 live feeds"):
        watching.hub.check_room("ann")
    watching.hub.check_room("bob")
    feeds += await fill(watching, "", MAX_FEEDS - MAX_FEEDS_OF_TENANT)
    for owner in ("", "bob"):
        with pytest.raises(TooManyFeedsError, match="64 live feeds"):
            watching.hub.check_room(owner)
        with pytest.raises(TooManyFeedsError):
            await anext(watching.hub.scenes(owner))
    for feed in feeds:
        await feed.aclose()
    assert watching.hub.num_feeds == 0
    watching.hub.check_room("ann")
