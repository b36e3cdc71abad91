"""Starting and stopping models on one server, with scripted engines; and two real models side by side."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio
from openai import AsyncOpenAI, NotFoundError, OpenAI
from trio.testing import MockClock, wait_all_tasks_blocked

from api.engine.spawn import Ahead
from api.errors import ApiError
from api.flags import ModelOptions, ServerOptions
from api.models.files import ModelFilesError, ModelNotFoundError
from api.protocols.management.request import StartRequest
from api.protocols.management.types import Health
from api.serving.fleet import Fleet, StartError
from api.serving.model import ModelRuntime
from scheduler.config import EngineConfig
from scheduler.messages import SamplingParams, Submit
from tests.api.scripted_engine import ECHO, HOLD
from tests.api.servers import MODEL, SECONDS, CortexServer, is_gone, paused
from tests.conftest import WriteVocab
from tests.models import write_mamba

SCRIPT = Path(__file__).parents[1] / "scripted_engine.py"
PARAMS = SamplingParams(seed=1)


class Models:
    """A fleet with scripted engines: one behaviour per start. The last one also holds for all further starts."""

    def __init__(self, folder: Path, vocabulary: str) -> None:
        self.folder = folder
        self.vocabulary = Path(vocabulary)
        self.on_disk: dict[str, ModelOptions] = {}
        """Models that a request may load on demand."""
        self.asked: list[str] = []
        """Names that were looked up in `on_disk`."""
        self.behave("serves")

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, str(SCRIPT), str(self.folder))

    def behave(self, *behaviours: str) -> None:
        (self.folder / "behaviours").write_text("\n".join(behaviours))

    def options(self, name: str, *aliases: str, file: str = "", **given: object) -> ModelOptions:
        """Each model has its own file, unless `file` names another."""
        path = self.folder / f"{file or name}.gguf"
        if not path.exists():
            path.hardlink_to(self.vocabulary)
        return ModelOptions(name, path, EngineConfig(f"{name}.gguf"), aliases, given=given)

    @property
    def pids(self) -> list[int]:
        """The process ids of all engines started so far."""
        starts = self.folder / "starts"
        return list(map(int, starts.read_text().split())) if starts.exists() else []

    @property
    def num_starts(self) -> int:
        return len(self.pids)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Fleet]:
        def on_demand(name: str) -> ModelOptions | None:
            self.asked.append(name)
            if name == "broken":
                raise ModelFilesError("broken is cut short")
            if name == "several":
                raise ModelNotFoundError("several may be one or two; say which")
            return self.on_disk.get(name)

        fleet = Fleet(max_waiting=8, on_demand=on_demand, engine_command=self.command, **settings)
        with trio.fail_after(2 * SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(fleet.run)
                yield fleet
                with trio.move_on_after(SECONDS / 4):  # a loading engine does not read messages
                    await fleet.close()
                nursery.cancel_scope.cancel()


@pytest.fixture
def models(tmp_path: Path, write_vocab: WriteVocab, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setattr("api.engine.process.END_LIMIT", SECONDS)
    monkeypatch.setattr("api.serving.model.END_LIMIT", SECONDS)
    return Models(tmp_path, write_vocab([("a", 1)]))


@pytest.fixture
def clock() -> MockClock:
    """Runs in real time, because engines are processes, but can jump forward."""
    return MockClock(rate=1.0)


IDLE_LIMIT = 10.0
"""Seconds. So long that no model becomes idle by itself, even on a slow machine."""


def statuses(fleet: Fleet) -> dict[str, str]:
    return {model.options.name: model.status for model in fleet.models}


def pid(model: ModelRuntime) -> int:
    assert model.service is not None
    return model.service.engine.ready_info().pid


async def echoed(fleet: Fleet, name: str, *tokens: int) -> list[int]:
    """The tokens that the model's engine returns for a prompt with these tokens."""
    service = await fleet.accepting(name)
    received: list[int] = []
    with service.engine.generate([Submit(service.engine.next_id(), [ECHO, *tokens], 10, PARAMS)]) as generation:
        while True:
            [(_, output)] = await generation.receive()
            received += output.tokens
            if output.finish_reason is not None:
                return received


async def refusal(fleet: Fleet, name: str) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as raised:
        await fleet.accepting(name)
    return raised.value.status, raised.value.code


# Starting and stopping


@pytest.mark.parametrize(("ctx_len", "warns"), [(512, False), (513, True)])
async def test_a_context_above_the_trained_length_is_logged(
    models: Models, caplog: pytest.LogCaptureFixture, ctx_len: int, warns: bool
) -> None:
    options = models.options("one")
    options = replace(options, engine=replace(options.engine, ctx_len=ctx_len))
    async with models.running() as fleet:
        await fleet.start(options)
    assert ("trained for a context of 512 tokens and runs with 513" in caplog.text) == warns


async def test_each_model_has_its_own_engine_and_answers_by_all_its_names(models: Models) -> None:
    async with models.running() as fleet:
        one = await fleet.start(models.options("one", "first", "one"))
        two = await fleet.start(models.options("two"))
        assert pid(one) != pid(two)
        assert [model.names for model in fleet.models] == [("one", "first"), ("two",)]
        assert statuses(fleet) == {"one": "ready", "two": "ready"}
        for name, model in (("one", one), ("first", one), ("two", two)):
            assert await fleet.service(name) is model.service
            assert await echoed(fleet, name, 5, 6) == [5, 6]
        assert await fleet.service(None) is one.service


async def test_stopping_a_model_ends_its_engine_and_no_other(models: Models) -> None:
    async with models.running() as fleet:
        engines = [pid(await fleet.start(models.options(name))) for name in ("one", "two")]
        await fleet.stop("one")
        assert [is_gone(engine) for engine in engines] == [True, False]
        assert statuses(fleet) == {"two": "ready"}
        assert await refusal(fleet, "one") == (404, "model_not_found")
        assert await echoed(fleet, "two", 7) == [7]
        again = await fleet.start(models.options("one"))
        assert pid(again) not in engines
        assert await echoed(fleet, "one", 8) == [8]


async def test_stopping_a_model_waits_for_running_answers(models: Models) -> None:
    async with models.running(grace_seconds=SECONDS) as fleet, trio.open_nursery() as nursery:
        model = await fleet.start(models.options("one"))
        service = await fleet.accepting("one")
        with service.engine.generate([Submit(service.engine.next_id(), [HOLD, 5], 10, PARAMS)]) as generation:
            [(_, output)] = await generation.receive()
            nursery.start_soon(fleet.stop, "one")
            await wait_all_tasks_blocked()
            assert model.status == "stopping"
            assert await refusal(fleet, "one") == (503, "shutting_down")
            assert output.tokens == [5]
        await model.wait_ended()  # the stream has ended
    assert fleet.models == []


async def test_answers_that_outlast_the_grace_period_end_with_an_error(models: Models) -> None:
    async with models.running(grace_seconds=0.0) as fleet:
        await fleet.start(models.options("one"))
        service = await fleet.accepting("one")
        with service.engine.generate([Submit(service.engine.next_id(), [HOLD, 5], 10, PARAMS)]) as generation:
            await fleet.stop("one")
            with pytest.raises(ApiError, match="being stopped"):
                await generation.receive()


async def test_the_threads_of_engines_do_not_spin_long(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        monkeypatch.setenv("GOMP_SPINCOUNT", "5")
        await fleet.start(models.options("two"))
    assert (models.folder / "spins").read_text().split() == ["1000", "5"]


async def test_a_cancelled_stop_still_stops_the_model(models: Models) -> None:
    async with models.running(grace_seconds=0.2) as fleet:
        model = await fleet.start(models.options("one"))
        engine = pid(model)
        service = await fleet.accepting("one")
        with service.engine.generate([Submit(service.engine.next_id(), [HOLD, 5], 10, PARAMS)]):
            with trio.move_on_after(0.05) as asking:
                await fleet.stop("one")
            assert asking.cancel_called
        assert fleet.models == []
        assert is_gone(engine)
        await fleet.start(models.options("one"))


async def test_a_request_that_arrives_while_an_idle_model_stops_is_answered(models: Models, clock: MockClock) -> None:
    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        await fleet.start(models.options("one"))
        for round_number in range(2, 7):
            clock.jump(IDLE_LIMIT)
            await wait_for_status(fleet, "one", "stopping")
            assert await echoed(fleet, "one", 5) == [5]
            assert models.num_starts == round_number


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_the_engine_that_was_started_ahead_serves_the_first_model(models: Models, log_format: str) -> None:
    options = ServerOptions(models.options("a"), log_format=log_format)
    ahead = Ahead(options.first_engine, command=models.command)
    async with models.running(log_format=log_format, ahead=ahead) as fleet:
        first = await fleet.start(options.first)
        second = await fleet.start(models.options("b"))
        assert models.pids == [pid(first), pid(second)]


async def test_a_running_model_is_not_started_twice(models: Models) -> None:
    async with models.running() as fleet:
        model = await fleet.start(models.options("one"))
        assert await fleet.start(models.options("one")) is model
        assert models.num_starts == 1


@pytest.mark.parametrize("name", ["one", "first"])
async def test_a_name_belongs_to_one_model(models: Models, name: str) -> None:
    async with models.running() as fleet:
        await fleet.start(models.options("one", "first"))
        with pytest.raises(StartError, match=f"the name {name} is in use by another model"):
            await fleet.start(models.options("two", name))
        assert statuses(fleet) == {"one": "ready"}


async def test_a_model_that_fails_to_load_reports_the_reason_and_leaves_nothing(models: Models) -> None:
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        models.behave("serves", "fails", "serves")
        with pytest.raises(StartError, match="it is broken"):
            await fleet.start(models.options("two"))
        assert statuses(fleet) == {"one": "ready"}
        assert await refusal(fleet, "two") == (404, "model_not_found")
        assert await echoed(fleet, "one", 5) == [5]
        await fleet.start(models.options("two"))
        assert await echoed(fleet, "two", 6) == [6]


async def test_a_file_without_a_vocabulary_is_refused(models: Models, write_vocab: WriteVocab) -> None:
    models.vocabulary = Path(write_vocab([]))
    async with models.running() as fleet:
        with pytest.raises(StartError, match="vocabulary"):
            await fleet.start(models.options("one"))
        assert (fleet.models, models.num_starts) == ([], 1)
        assert is_gone(models.pids[0])


async def test_requests_for_a_loading_model_get_a_503(models: Models) -> None:
    models.behave("serves", "loads_forever")
    async with models.running() as fleet, trio.open_nursery() as nursery:
        await fleet.start(models.options("one"))
        nursery.start_soon(fleet.start, models.options("two"))
        await wait_for_status(fleet, "two", "loading")
        while models.num_starts < 2:
            assert await refusal(fleet, "two") == (503, "model_loading")
            await trio.sleep(0.005)
        assert await refusal(fleet, "two") == (503, "model_loading")
        assert fleet.status == "ok"  # the other model answers
        nursery.cancel_scope.cancel()


async def wait_for_status(fleet: Fleet, name: str, status: str) -> None:
    while statuses(fleet).get(name) != status:
        await trio.lowlevel.checkpoint()  # no pause: the status may change during one


async def test_a_model_stopped_while_loading_ends_at_once(models: Models) -> None:
    models.behave("loads_forever")

    async def start(fleet: Fleet) -> None:
        with pytest.raises(StartError, match="stopped while it was loading"):
            await fleet.start(models.options("one"))

    async with models.running() as fleet, trio.open_nursery() as nursery:
        nursery.start_soon(start, fleet)
        while not models.num_starts:  # noqa: ASYNC110 - other processes set no events
            await trio.sleep(0.005)
        await fleet.stop("one")
        assert fleet.models == []
        assert is_gone(models.pids[0])
        models.behave("serves")
        await fleet.start(models.options("one"))
        assert await echoed(fleet, "one", 5) == [5]


@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        ({"file": "other"}, "its file is "),
        ({"ctx_len": 256}, "its --ctx-len differs"),
        ({"kv_type": "q8_0"}, "its --kv-type differs"),
    ],
    ids=str,
)
async def test_a_running_model_with_other_settings_is_not_reused(
    models: Models, wanted: dict[str, Any], difference: str
) -> None:
    async with models.running() as fleet:
        model = await fleet.start(models.options("one", "first", ctx_len=128))
        with pytest.raises(StartError, match=difference):
            await fleet.start(models.options("one", **wanted))
        with pytest.raises(StartError, match="it has no alias second"):
            await fleet.start(models.options("one", "second"))
        for same in (models.options("one"), models.options("one", "first", ctx_len=128)):
            assert await fleet.start(same) is model
        assert models.num_starts == 1


async def test_an_unexpected_error_affects_only_its_own_model(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError(f"{path.name} is odd")

    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        monkeypatch.setattr("api.serving.loader.Tokenizer", fail)
        with pytest.raises(StartError, match=r"two\.gguf is odd"):
            await fleet.start(models.options("two"))
        assert statuses(fleet) == {"one": "ready"}
        assert await echoed(fleet, "one", 5) == [5]
    assert "RuntimeError" in caplog.text


async def test_a_deleted_file_of_a_loaded_model_does_not_affect_other_models(models: Models) -> None:
    async with models.running() as fleet:
        model = await fleet.start(models.options("one"))
        model.options.path.unlink()
        await fleet.start(models.options("two"))
        assert statuses(fleet) == {"one": "ready", "two": "ready"}


async def test_no_model_is_started_while_the_server_shuts_down(models: Models) -> None:
    async with models.running() as fleet:
        fleet.drain()
        with pytest.raises(StartError, match="shutting down"):
            await fleet.start(models.options("one"))


async def test_starting_a_model_waits_for_its_restart(models: Models) -> None:
    async with models.running() as fleet:
        model = await fleet.start(models.options("one"))
        os.kill(pid(model), signal.SIGKILL)
        await wait_for_status(fleet, "one", "loading")
        assert await fleet.start(models.options("one")) is model
        assert model.status == "ready"


async def test_a_model_that_fails_to_restart_reports_the_reason(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.engine.supervisor.RESTART_PAUSE", 0.01)
    models.behave("serves", "fails")

    async def start_again(fleet: Fleet) -> None:
        with pytest.raises(StartError, match="it is broken"):
            await fleet.start(models.options("one"))

    async with models.running() as fleet, trio.open_nursery() as nursery:
        model = await fleet.start(models.options("one"))
        os.kill(pid(model), signal.SIGKILL)
        await wait_for_status(fleet, "one", "loading")
        nursery.start_soon(start_again, fleet)
        await wait_for_status(fleet, "one", "failed")
        health = Health.model_validate(await fleet.health() | {"pid": 1, "uptime_seconds": 1.0, "version": "1"})
        assert (health.status, health.reason, health.models[0].status) == ("failed", "it is broken", "failed")
        with pytest.raises(ApiError, match="it is broken") as raised:
            await fleet.accepting("one")
        assert (raised.value.status, raised.value.code) == (503, "model_not_loaded")
        with pytest.raises(StartError, match="it is broken"):
            await fleet.start(models.options("one"))
        models.behave("serves")
        await fleet.start(models.options("two"))
        assert fleet.status == "ok"
        await wait_for_status(fleet, "one", "ready")
        assert await echoed(fleet, "one", 5) == [5]


# Loading on demand, unloading when idle


async def test_concurrent_requests_for_a_model_on_disk_load_it_once(models: Models) -> None:
    models.on_disk = {"two": models.options("two")}
    answers: list[list[int]] = []

    async def ask(fleet: Fleet, token: int) -> None:
        answers.append(await echoed(fleet, "two", token))

    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        async with trio.open_nursery() as nursery:
            for token in range(5, 13):
                nursery.start_soon(ask, fleet, token)
        assert sorted(answers) == [[token] for token in range(5, 13)]
        assert models.num_starts == 2
        assert set(models.asked) == {"two"}
        assert await refusal(fleet, "three") == (404, "model_not_found")
        assert await refusal(fleet, "broken") == (503, "model_not_loaded")
        with pytest.raises(ApiError, match="say which") as raised:
            await fleet.accepting("several")
        assert (raised.value.status, raised.value.code) == (404, "model_not_found")


async def test_the_next_request_retries_a_model_that_failed_to_load(models: Models) -> None:
    models.on_disk = {"one": models.options("one")}
    models.behave("fails", "serves")
    async with models.running() as fleet:
        assert await refusal(fleet, "one") == (503, "model_not_loaded")
        assert fleet.models == []
        assert await echoed(fleet, "one", 5) == [5]


async def test_an_idle_model_is_unloaded_and_reloaded_by_the_next_request(models: Models, clock: MockClock) -> None:
    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        model = await fleet.start(models.options("one"))
        first = pid(model)
        clock.jump(IDLE_LIMIT)
        await wait_for_status(fleet, "one", "unloaded")
        assert is_gone(first)
        assert (model.service, fleet.status) == (None, "ok")
        assert await echoed(fleet, "one", 5) == [5]
        assert (models.num_starts, models.asked) == (2, [])


async def test_a_server_is_ready_from_its_first_model_on(models: Models, clock: MockClock) -> None:
    """Other models that load or fail do not take it out of a cluster, and neither does a model that loads again."""
    models.behave("loads_until_go", "fails", "loads_until_go")
    go = models.folder / "go"

    async def ask(fleet: Fleet) -> None:
        assert await echoed(fleet, "one", 5) == [5]

    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        assert fleet.status == "loading"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.start, models.options("one"))
            await wait_for_status(fleet, "one", "loading")
            assert fleet.status == "loading"
            go.touch()
        assert fleet.status == "ok"
        with pytest.raises(StartError):
            await fleet.start(models.options("two"))
        assert fleet.status == "ok"
        go.unlink()
        clock.jump(IDLE_LIMIT)
        await wait_for_status(fleet, "one", "unloaded")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.start, models.options("two"))
            await wait_for_status(fleet, "two", "loading")
            assert fleet.status == "ok", "a request would load the first model again"
            nursery.start_soon(ask, fleet)
            await wait_for_status(fleet, "one", "loading")
            assert fleet.status == "ok", "requests wait for the first model"
            go.touch()
        assert statuses(fleet) == {"one": "ready", "two": "ready"}
        await fleet.stop("one")
        await fleet.stop("two")
        assert fleet.status == "ok"


async def test_a_request_during_unloading_waits_for_the_reload(
    models: Models, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.engine.process.END_LIMIT", 0.5)
    monkeypatch.setattr("api.serving.model.END_LIMIT", 0.5)
    models.behave("ignores_stop", "serves")  # the first engine ends late
    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        await fleet.start(models.options("one"))
        clock.jump(IDLE_LIMIT)
        await wait_for_status(fleet, "one", "stopping")
        assert await echoed(fleet, "one", 5) == [5]
        assert models.num_starts == 2


async def test_a_model_in_use_is_not_idle(models: Models, clock: MockClock) -> None:
    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        model = await fleet.start(models.options("one"))
        service = await fleet.accepting("one")
        with service.engine.generate([Submit(service.engine.next_id(), [HOLD, 5], 10, PARAMS)]):
            clock.jump(2 * IDLE_LIMIT)
            await trio.sleep(1.1)  # the fleet checks for idle models once per second
            assert model.status == "ready"
        clock.jump(IDLE_LIMIT)
        await wait_for_status(fleet, "one", "unloaded")


async def test_a_model_that_fails_to_reload_stays_registered(models: Models, clock: MockClock) -> None:
    models.behave("serves", "fails", "serves")
    async with models.running(idle_limit=IDLE_LIMIT) as fleet:
        await fleet.start(models.options("one"))
        clock.jump(IDLE_LIMIT)
        await wait_for_status(fleet, "one", "unloaded")
        assert await refusal(fleet, "one") == (503, "model_not_loaded")
        assert statuses(fleet) == {"one": "unloaded"}
        assert await echoed(fleet, "one", 5) == [5]


# Eviction of models to make room


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model counts as unused as soon as it has answered."""
    monkeypatch.setattr("api.serving.memory_policy.IN_USE_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_a_requested_model_may_evict_the_least_recently_used_ones(models: Models) -> None:
    models.on_disk = {"three": models.options("three")}
    models.behave("serves", "serves", "out_of_memory", "out_of_memory", "serves")
    async with models.running() as fleet:
        engines = [pid(await fleet.start(models.options(name))) for name in ("one", "two")]
        assert await echoed(fleet, "one", 5) == [5]
        assert await echoed(fleet, "three", 6) == [6]
        assert statuses(fleet) == {"one": "unloaded", "two": "unloaded", "three": "ready"}
        assert [is_gone(engine) for engine in engines] == [True, True]
        assert await echoed(fleet, "one", 7) == [7], "a request reloads it"


@pytest.mark.usefixtures("at_once")
async def test_no_more_models_are_evicted_than_necessary(models: Models) -> None:
    models.on_disk = {"three": models.options("three")}
    models.behave("serves", "serves", "out_of_memory", "serves")
    async with models.running() as fleet:
        for name in ("one", "two"):
            await fleet.start(models.options(name))
        assert await echoed(fleet, "one", 5) == [5]
        assert await echoed(fleet, "three", 6) == [6]
        assert statuses(fleet) == {"one": "ready", "two": "unloaded", "three": "ready"}


@pytest.mark.usefixtures("at_once")
async def test_a_model_that_answers_is_not_evicted(models: Models) -> None:
    models.on_disk = {"two": models.options("two")}
    models.behave("serves", "out_of_memory")
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        service = await fleet.accepting("one")
        with service.engine.generate([Submit(service.engine.next_id(), [HOLD, 5], 10, PARAMS)]) as generation:
            assert await refusal(fleet, "two") == (503, "model_not_loaded")
            [(_, output)] = await generation.receive()
            assert output.tokens == [5]
        assert statuses(fleet) == {"one": "ready"}


async def test_a_recently_used_model_is_evicted_once_it_was_unused_long_enough(
    models: Models, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.serving.memory_policy.IN_USE_SECONDS", SECONDS / 4)
    monkeypatch.setattr("api.serving.memory_policy.ROOM_LIMIT", SECONDS)
    models.on_disk = {"two": models.options("two")}
    models.behave("serves", "out_of_memory", "serves")
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        service = await fleet.accepting("one")
        asked = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echoed, fleet, "two", 6)
            while models.num_starts < 2 or not is_gone(models.pids[1]):  # noqa: ASYNC110 - as above
                await trio.sleep(0.005)
            await wait_all_tasks_blocked()
            assert statuses(fleet) == {"one": "ready", "two": "loading"}
            with service.engine.generate([Submit(service.engine.next_id(), [ECHO, 5], 10, PARAMS)]) as generation:
                assert (await generation.receive())[0][1].tokens == [5]
            clock.jump(SECONDS / 4)
        assert trio.current_time() - asked >= SECONDS / 4
        assert statuses(fleet) == {"one": "unloaded", "two": "ready"}


async def test_a_model_does_not_wait_for_ever_until_others_are_unused(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.serving.memory_policy.IN_USE_SECONDS", SECONDS)
    monkeypatch.setattr("api.serving.memory_policy.ROOM_LIMIT", 0.1)
    models.on_disk = {"two": models.options("two")}
    models.behave("serves", "out_of_memory")
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        assert await refusal(fleet, "two") == (503, "model_not_loaded")
        assert statuses(fleet) == {"one": "ready"}


@pytest.mark.usefixtures("at_once")
async def test_no_model_is_evicted_for_one_that_would_still_not_fit(models: Models) -> None:
    models.on_disk = {"two": models.options("two")}
    models.behave("serves", "never_fits")
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        assert await refusal(fleet, "two") == (503, "model_not_loaded")
        assert statuses(fleet) == {"one": "ready"}


async def test_all_names_of_a_file_share_one_engine(models: Models) -> None:
    models.on_disk = {name: models.options(name, file="two") for name in ("two", "two:q4", "zwei")}
    async with models.running() as fleet:
        for name in models.on_disk:
            assert await echoed(fleet, name, 5) == [5]
        assert statuses(fleet) == {"two": "ready"}
        assert models.num_starts == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("behaviour", ["out_of_memory", "fails"])
async def test_no_model_is_evicted_for_an_explicit_start_or_a_broken_model(models: Models, behaviour: str) -> None:
    models.on_disk = {"two": models.options("two")}
    models.behave("serves", behaviour)
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        if behaviour == "fails":
            assert await refusal(fleet, "two") == (503, "model_not_loaded")
        else:
            with pytest.raises(StartError, match="no memory for it"):
                await fleet.start(models.options("two"))
        assert statuses(fleet) == {"one": "ready"}


async def test_no_model_is_loaded_while_the_server_shuts_down(models: Models) -> None:
    models.on_disk = {"two": models.options("two")}
    async with models.running() as fleet:
        await fleet.start(models.options("one"))
        fleet.drain()
        assert await refusal(fleet, "one") == (503, "shutting_down")
        for on_disk_or_unknown in ("two", "three"):
            assert await refusal(fleet, on_disk_or_unknown) == (503, "shutting_down")
        assert models.num_starts == 1


# A model's flags in a start request


def test_a_start_request_has_every_flag_of_a_model() -> None:
    from dataclasses import fields

    from api.flags import ModelFlags

    names = {item.name for item in fields(ModelFlags)}
    assert set(StartRequest.model_fields) == names | {"model", "path"}
    body = ModelFlags(alias=["a"], ctx_len=128, disk_cache="1GiB").start_request("m", Path("/m.gguf"))
    assert StartRequest.model_validate(body).flags() == ModelFlags(alias=["a"], ctx_len=128, disk_cache="1GiB")


# Two real models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    with CortexServer(tmp_path_factory.mktemp("server"), "--ctx-len=512", "--max-seqs=16") as server:
        yield server


@pytest.fixture(scope="module")
def mamba(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mamba.gguf"
    write_mamba(path, model_path)
    return path


def post(server: CortexServer, action: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{action}", json=body, headers=server.owner, timeout=SECONDS)


def test_two_models_answer_side_by_side_and_stopping_one_frees_everything(server: CortexServer, mamba: Path) -> None:
    started = post(server, "start", model="mamba", path=str(mamba), ctx_len=512, max_seqs=8, alias=["snake"])
    assert (started.status_code, started.json()["status"]) == (200, "ready")
    engines = [server.health(name)["engine_pid"] for name in (MODEL, "mamba")]
    with OpenAI(base_url=server.url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == [MODEL, "mamba", "snake"]

    async def stream(
        client: AsyncOpenAI, model: str, number: int, num_tokens: int, begun: asyncio.Barrier | None = None
    ) -> int:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Count from {number}."}],
            max_tokens=num_tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        num_generated = 0
        await anext(answer)
        if begun is not None:
            await begun.wait()
        async for chunk in answer:
            num_generated = chunk.usage.completion_tokens if chunk.usage else num_generated
        return num_generated

    async def ask_all() -> tuple[list[int], list[int]]:
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS) as client:
            mixed = await asyncio.gather(
                *(stream(client, MODEL if number % 2 else "snake", number, 24) for number in range(16))
            )
            begun = asyncio.Barrier(8 + 1)
            staying = [asyncio.create_task(stream(client, MODEL, number, 60, begun)) for number in range(8)]
            await begun.wait()
            with paused(engines[0]):  # so that the other model's streams do not end before the stop
                stopped = await asyncio.to_thread(post, server, "stop", model="snake")
            assert stopped.status_code == 200
            return mixed, await asyncio.gather(*staying)

    mixed, untouched = asyncio.run(ask_all())
    assert (mixed, untouched) == ([24] * 16, [60] * 8)
    assert [is_gone(engine) for engine in engines] == [False, True]
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="snake", messages=[{"role": "user", "content": "Hi."}])
    server.assert_nothing_is_held()


def test_a_model_too_large_for_the_memory_is_refused_and_the_others_keep_running(
    server: CortexServer, mamba: Path
) -> None:
    engine = server.health()["engine_pid"]
    copy = mamba.with_name("copy.gguf")
    copy.hardlink_to(server.health()["path"])
    tokens = psutil.virtual_memory().total // 1024  # of 22.5 KiB each
    refused = post(server, "start", model="copy", path=str(copy), kv_tokens=tokens, ctx_len=8192, kv_layout="pool")
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert message.startswith("copy.gguf: it would take"), "the message must not reveal the folder"
    assert "are available" in message
    assert server.health()["engine_pid"] == engine
    assert [model["id"] for model in httpx.get(f"{server.url}/models", timeout=SECONDS).json()["data"]] == [MODEL]


def test_an_abort_of_llama_cpp_while_loading_affects_no_other_model(
    server: CortexServer, model_path: str, tmp_path: Path
) -> None:
    """The vocabulary lacks byte tokens. llama.cpp aborts when it first needs one."""
    write_mamba(tmp_path / "broken.gguf", model_path, vocabulary_kind="llama")
    refused = post(server, "start", model="broken", path=str(tmp_path / "broken.gguf"), ctx_len=512, max_seqs=2)
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert message.startswith("while loading the model, the engine crashed (SIGABRT): terminate called after throwing")
    assert "\n" not in message
    assert [model["id"] for model in httpx.get(f"{server.url}/models", timeout=SECONDS).json()["data"]] == [MODEL]
    assert server.health()["status"] == "ok"


def test_only_the_owner_stops_models_and_not_from_a_web_page(server: CortexServer) -> None:
    url = f"{server.url}/models/stop"
    body, kind = f'{{"model": "{MODEL}"}}', {"Content-Type": "text/plain"}
    refused = httpx.post(url, content=body, headers=server.owner | kind, timeout=SECONDS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    for headers in ({}, {"Authorization": "Bearer not-needed"}, server.owner | {"Origin": "http://localhost"}):
        refused = httpx.post(url, json={"model": MODEL}, headers=headers, timeout=SECONDS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert server.health()["status"] == "ok"


@contextmanager
def reverse_proxy(port: int) -> Iterator[int]:
    """A proxy on this machine that adds no header, so that its clients look like local ones. Yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            url = f"http://127.0.0.1:{port}{self.path}"
            answer = httpx.post(url, content=body, headers=headers, timeout=SECONDS, trust_env=False)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield proxy.server_port
        finally:
            proxy.shutdown()
            thread.join(SECONDS)


def test_clients_of_a_plain_reverse_proxy_need_a_key_to_manage_models(server: CortexServer) -> None:
    with reverse_proxy(server.port) as port:
        for action, body in (("stop", {"model": MODEL}), ("start", {"model": MODEL, "path": "/etc/hostname"})):
            url = f"http://127.0.0.1:{port}/v1/models/{action}"
            refused = httpx.post(url, json=body, timeout=SECONDS, trust_env=False)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        allowed = httpx.post(url, json={"model": "none"}, headers=server.owner, timeout=SECONDS, trust_env=False)
        assert allowed.status_code == 404
    assert server.health()["status"] == "ok"


def test_an_unknown_model_cannot_be_started_or_stopped(server: CortexServer) -> None:
    refused = post(server, "start", model="no/such-model")
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    refused = post(server, "stop", model="no/such-model")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
