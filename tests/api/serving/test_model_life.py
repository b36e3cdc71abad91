"""The lifecycle of models under any order of events. Engines are tasks and the time is virtual."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from api.engine.connection import Connection
from api.engine.supervisor import RESTART_PAUSE
from api.errors import ApiError
from api.flags import ModelOptions
from api.serving.fleet import Fleet, StartError
from api.serving.state import TRANSITIONS, State
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig, EngineInfo
from scheduler.messages import (
    Failed,
    Message,
    Output,
    Ready,
    SamplingParams,
    Step,
    Stop,
    Submit,
    decode,
    encode,
)
from tests.api.fakes import INFO
from tests.conftest import WriteVocab

LOAD_SECONDS = 2.0
GRACE_SECONDS = 5.0
IDLE_LIMIT = 10.0
UNUSED = LOAD_SECONDS + IDLE_LIMIT + 2.0
"""Seconds after a start at which an unused model is being unloaded, or has been if its engine stops at once."""
WEIGHTS = {"a": 300, "b": 500}
"""Bytes of each model."""
NEVER = 3000.0
"""Seconds of virtual time after which everything must have ended."""
MAPPED = {"a": 200, "b": None}
"""Bytes of each model that the system counts as available, as its engine reports them. None is all."""
WITH_SERVICE = {State.READY, State.UNLOADING, State.DRAINING}
REFUSALS = {
    (404, "model_not_found"),
    (503, "model_loading"),
    (503, "model_not_loaded"),
    (503, "shutting_down"),
    (500, "internal_error"),
}
FAILURES = {
    "it is broken",
    "no memory for it",
    "no memory for it anywhere",
    "while loading the model, the engine closed its connection",
    "the model was stopped while it was loading",
}


class Machine:
    """Engines with scripted behaviours, one per start. Further engines serve."""

    def __init__(self, behaviours: list[str]) -> None:
        self.behaviours = list(behaviours)
        self.engines: dict[str, trio.CancelScope] = {}
        """By model file. Cancelling a scope kills that engine."""
        self.num_loading = 0
        """Engines that are not ready yet."""
        self.launched: list[tuple[str, int]] = []
        """The model file of each engine, and the size of the other models' weights."""
        self.faults: list[str] = []

    def launcher(self, config: EngineConfig, *, command: object, ahead: object) -> "FakeLauncher":
        return FakeLauncher(self, config)


class FakeLauncher:
    def __init__(self, machine: Machine, config: EngineConfig) -> None:
        self._machine = machine
        self._config = config
        self._is_loading = False

    @asynccontextmanager
    async def launch(self) -> AsyncIterator[Connection]:
        machine, path = self._machine, self._config.model_path
        machine.launched.append((path, self._config.others_bytes))
        if path in machine.engines:
            machine.faults.append(f"two engines of {path}")
        behaviour = machine.behaviours.pop(0) if machine.behaviours else "serves"
        self._is_loading = True
        machine.num_loading += 1
        ours, theirs = memory_stream_pair()
        try:
            async with trio.open_nursery() as nursery:
                scope = machine.engines[path] = trio.CancelScope()
                nursery.start_soon(self._engine, theirs, behaviour, scope)
                async with Connection.over(ours) as connection:
                    yield connection
                if behaviour == "ignores_stop":
                    with trio.CancelScope(shield=True):
                        await trio.sleep(3.0)
                nursery.cancel_scope.cancel()
        finally:
            del machine.engines[path]
            self._loaded()

    def public_reason(self, reason: str) -> str:
        return reason

    def resident_bytes(self, info: EngineInfo) -> int:
        return 1

    def _loaded(self) -> None:
        if self._is_loading:
            self._is_loading = False
            self._machine.num_loading -= 1

    async def _engine(self, stream: trio.abc.Stream, behaviour: str, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._serve(stream, behaviour)
            except* trio.BrokenResourceError:
                pass
        await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream, behaviour: str) -> None:
        sending = trio.Lock()

        async def send(message: Message) -> None:
            async with sending:
                await stream.send_all(encode(message))

        async def answer(submit: Submit) -> None:
            await trio.sleep(submit.tokens[0])
            await send(Step([Output(submit.request_id, [5], "stop")]))

        if behaviour == "loads_forever":
            while await stream.receive_some():
                pass
            return
        await trio.sleep(LOAD_SECONDS)
        failures = {
            "fails": Failed("it is broken"),
            "out_of_memory": Failed("no memory for it", missing_bytes=1),
            "never_fits": Failed("no memory for it anywhere", missing_bytes=1 << 60),
        }
        if behaviour in failures:
            await send(failures[behaviour])
            return
        self._loaded()
        await send(Ready(replace(INFO, mapped_bytes=MAPPED[Path(self._config.model_path).stem])))
        pending = b""
        async with trio.open_nursery() as nursery:
            while data := await stream.receive_some():
                *lines, pending = (pending + data).split(b"\n")
                for message in map(decode, lines):
                    if isinstance(message, Submit):
                        nursery.start_soon(answer, message)
                    elif isinstance(message, Stop):
                        if behaviour == "ignores_stop":
                            await trio.sleep_forever()
                        nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()


class Watch(trio.abc.Instrument):
    """Checks the fleet after each step of each task."""

    def __init__(self, fleet: Fleet, machine: Machine) -> None:
        self._fleet = fleet
        self._machine = machine
        self._seen: dict[int, tuple[Any, State]] = {}

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        faults = self._machine.faults
        for model in self._fleet.models:
            self._seen.setdefault(id(model), (model, model.state))
        for key, (model, before) in self._seen.items():
            state = model.state
            self._seen[key] = (model, state)
            if state not in _reachable(before):
                faults.append(f"{before} became {state}")
            if (model.service is not None) != (state in WITH_SERVICE):
                faults.append(f"{state}, and its service is {model.service}")
            if state.is_final and model in self._fleet.models:
                faults.append(f"{state}, but registered")
        if self._machine.num_loading > 1:
            faults.append("two models are loaded at a time")


def _reachable(state: State) -> set[State]:
    """The states that are possible one step of a task later."""
    reachable = {state}
    while more := {after for before in reachable for after in TRANSITIONS[before]} - reachable:
        reachable |= more
    return reachable


class World:
    """A fleet on a fake machine, and its users."""

    def __init__(self, folder: Path, behaviours: list[str]) -> None:
        self.machine = Machine(behaviours)
        self._options = {}
        for name in "ab":
            path = folder / f"{name}.gguf"
            path.write_bytes(bytes(WEIGHTS[name]))
            self._options[name] = ModelOptions(name, path, EngineConfig(path.name))
        self.fleet = Fleet(
            max_waiting=1000, grace_seconds=GRACE_SECONDS, idle_limit=IDLE_LIMIT, on_demand=self._options.get
        )
        self.num_running = 0
        """Operations that have not ended."""
        self._stopped: set[str] = set()
        """Names of models that were stopped."""

    def begin(self, nursery: trio.Nursery, action: str, name: str, seconds: int) -> None:
        self.num_running += 1
        nursery.start_soon(self._operate, action, name, seconds)

    async def _operate(self, action: str, name: str, seconds: int) -> None:
        match action:
            case "start":
                await self.start(name)
            case "stop":
                await self.stop(name)
            case "stop and leave":
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await self.stop(name)
            case "ask":
                await self.ask(name, seconds)
            case "ask and leave":
                with trio.move_on_after(seconds / 10):
                    await self.ask(name, seconds)
            case "kill":
                if engine := self.machine.engines.get(f"{name}.gguf"):
                    engine.cancel()
        self.num_running -= 1

    async def start(self, name: str) -> None:
        try:
            model = await self.fleet.start(self._options[name])
        except StartError as error:
            self._expect(str(error) in FAILURES or "is being stopped" in str(error), error)
        else:
            assert model.options.name == name

    async def stop(self, name: str) -> None:
        try:
            model = self.fleet.model(name)
        except ApiError:
            return
        self._stopped.add(name)
        try:
            await self.fleet.stop(name)
        finally:
            assert model.is_over
            assert model not in self.fleet.models

    async def ask(self, name: str, seconds: int) -> bool:
        """Returns whether the request was answered."""
        try:
            service = await self.fleet.accepting(name)
            submit = Submit(service.engine.next_id(), [seconds], 10, SamplingParams())
            with service.engine.generate([submit]) as generation:
                [(_, output)] = await generation.receive()
        except ApiError as error:
            reason = error.message.removeprefix("the model cannot be loaded again: ")
            self._expect(error.code != "model_not_loaded" or reason in FAILURES, error)
            self._expect((error.status, error.code) in REFUSALS, error)
            self._expect("being stopped" not in error.message or name in self._stopped, error)
            self._expect("engine was stopped" not in error.message or name in self._stopped, error)
            return False
        assert output.tokens == [5]
        return True

    def _expect(self, expected: bool, error: Exception) -> None:
        if not expected:
            self.machine.faults.append(repr(error))

    async def wait_idle(self) -> None:
        """Waits until all operations have ended, without stopping a model."""
        with trio.fail_after(NEVER):
            while self.num_running:  # noqa: ASYNC110 - the time is virtual
                await trio.sleep(1.0)

    async def end(self) -> None:
        """Stops all models, including those that pending requests load meanwhile."""
        with trio.fail_after(NEVER):
            while self.num_running or self.fleet.models:
                for model in self.fleet.models:
                    await self.stop(model.options.name)
                await trio.sleep(1.0)

    def check(self) -> None:
        assert not self.machine.faults


async def _inline(function: Callable[..., Any], *arguments: Any) -> Any:
    """Replaces a thread: runs the function after 0.1 s of virtual time."""
    with trio.CancelScope(shield=True):
        await trio.sleep(0.1)
    return function(*arguments)


OPERATIONS = st.tuples(
    st.sampled_from(["start", "stop", "stop and leave", "ask", "ask", "ask and leave", "kill"]),
    st.sampled_from("aaab"),
    st.sampled_from([0, 1, 3, 20]),
)
READ = LOAD_SECONDS + 0.05
"""Seconds after a start when the engine is ready and the vocabulary is being read."""
PAUSES = st.sampled_from([0.0, 0.05, 0.5, READ, 2 * LOAD_SECONDS, UNUSED, UNUSED])
BEHAVIOURS = st.lists(
    st.sampled_from(
        ["serves", "serves", "ignores_stop", "ignores_stop", "fails", "out_of_memory", "never_fits", "loads_forever"]
    ),
    max_size=5,
)


@pytest.fixture
def vocabulary(write_vocab: WriteVocab) -> Tokenizer:
    return Tokenizer(write_vocab([("a", 1)]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(OPERATIONS, PAUSES), min_size=4, max_size=16), behaviours=BEHAVIOURS)
@example(  # stopped while it is being unloaded and a request waits for the reload
    steps=[(("start", "a", 0), UNUSED), (("ask", "a", 1), 0.5), (("stop", "a", 0), 0.0)], behaviours=["ignores_stop"]
)
@example(  # requested while it is being unloaded
    steps=[(("start", "a", 0), UNUSED), (("ask", "a", 1), 0.5)], behaviours=["ignores_stop"]
)
@example(  # the reload fails; the next request reloads it
    steps=[(("start", "a", 0), UNUSED), (("ask", "a", 1), 2 * LOAD_SECONDS), (("ask", "a", 1), 2 * LOAD_SECONDS)],
    behaviours=["serves", "fails"],
)
@example(  # stopped while its vocabulary is being read
    steps=[(("start", "a", 0), READ), (("stop", "a", 0), 0.0), (("ask", "a", 1), 0.0)], behaviours=[]
)
@example(  # the stop is cancelled while a request runs
    steps=[(("start", "a", 0), READ + 0.1), (("ask", "a", 3), 0.5), (("stop and leave", "a", 0), 0.0)], behaviours=[]
)
@example(  # evicted to make room for another model
    steps=[(("start", "a", 0), 2 * LOAD_SECONDS), (("ask", "b", 1), 0.5), (("ask", "a", 1), 2 * LOAD_SECONDS)],
    behaviours=["ignores_stop", "out_of_memory"],
)
@example(  # not evicted while it answers
    steps=[(("start", "a", 0), 2 * LOAD_SECONDS), (("ask", "a", 20), 0.5), (("ask", "b", 1), 2 * LOAD_SECONDS)],
    behaviours=["serves", "out_of_memory"],
)
@example(  # both engines are killed together, while they answer
    steps=[
        (("start", "a", 0), 2 * LOAD_SECONDS),
        (("start", "b", 0), 2 * LOAD_SECONDS),
        (("ask", "a", 3), 0.05),
        (("ask", "b", 3), 0.05),
        (("kill", "a", 0), 0.0),
        (("kill", "b", 0), 0.5),
        (("stop", "b", 0), 0.0),
    ],
    behaviours=[],
)
def test_every_request_is_answered_and_no_model_is_left_for_any_order_of_events(
    steps: list[tuple[tuple[str, str, int], float]], behaviours: list[str], vocabulary: Tokenizer, tmp_path: Path
) -> None:
    async def play() -> None:
        world = World(tmp_path, behaviours)
        trio.lowlevel.add_instrument(Watch(world.fleet, world.machine))
        with (
            patch("api.serving.fleet.EngineLauncher", world.machine.launcher),
            patch("api.serving.loader.Tokenizer", lambda _: vocabulary),
            patch("trio.to_thread.run_sync", _inline),
        ):
            async with trio.open_nursery() as nursery:
                await nursery.start(world.fleet.run)
                for operation, pause in steps:
                    world.begin(nursery, *operation)
                    await trio.sleep(pause)
                    world.check()
                if "loads_forever" not in behaviours:
                    await world.wait_idle()
                await world.end()
                world.check()
                assert not world.machine.engines
                world.machine.behaviours.clear()
                assert await world.ask("a", 1), "the fleet still works"
                nursery.cancel_scope.cancel()
        world.check()
        assert not world.machine.engines

    trio.run(play, clock=MockClock(autojump_threshold=0))


def test_engines_that_die_together_load_one_after_the_other_and_know_the_others_weights(
    vocabulary: Tokenizer, tmp_path: Path
) -> None:
    """Else both would size their KV memory from the same free memory."""

    async def play() -> None:
        world = World(tmp_path, [])
        machine = world.machine
        with (
            patch("api.serving.fleet.EngineLauncher", machine.launcher),
            patch("api.serving.loader.Tokenizer", lambda _: vocabulary),
            patch("trio.to_thread.run_sync", _inline),
        ):
            async with trio.open_nursery() as nursery:
                await nursery.start(world.fleet.run)
                await world.start("a")
                machine.engines["a.gguf"].cancel()
                await trio.sleep(2 * LOAD_SECONDS)
                await world.start("b")
                assert await world.ask("a", 0), "it is not idle"
                machine.engines["a.gguf"].cancel()
                await trio.sleep(0.5)
                machine.engines["b.gguf"].cancel()
                await trio.sleep(RESTART_PAUSE + 0.5)
                assert (machine.num_loading, len(machine.launched)) == (1, 4), "b waits for a"
                await trio.sleep(2 * LOAD_SECONDS)
                assert await world.ask("a", 1)
                assert await world.ask("b", 1)
                nursery.cancel_scope.cancel()
        assert machine.launched == [
            ("a.gguf", 0),
            ("a.gguf", 0),
            ("b.gguf", MAPPED["a"]),
            ("a.gguf", WEIGHTS["b"]),
            ("b.gguf", MAPPED["a"]),
        ]

    trio.run(play, clock=MockClock(autojump_threshold=0))
