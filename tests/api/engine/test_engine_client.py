"""The engine client and its supervisor, with a scripted process as the engine."""

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.engine import connection, process, supervisor
from api.engine.client import EngineClient
from api.engine.generation import UNREAD_LIMIT, Generation
from api.engine.process import EngineLauncher
from api.engine.supervisor import EngineFailedError
from api.errors import ApiError
from scheduler.config import EngineConfig, EngineInfo
from scheduler.messages import Output, SamplingParams, Snapshot, Submit
from tests.api.fakes import FakeEngine
from tests.api.scripted_engine import DIE, DIE_ONCE, ECHO, GARBAGE, HOLD, PAUSE, SILENCE, STRANGERS
from tests.api.servers import SECONDS, is_gone

SCRIPT = Path(__file__).parents[1] / "scripted_engine.py"
PARAMS = SamplingParams(seed=1)


class Engines:
    """A client with scripted engines: one behaviour per start. The last one also holds for all further starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = (sys.executable, str(SCRIPT), str(folder))
        self.client = EngineClient(EngineLauncher(EngineConfig("tiny.gguf", ctx_len=77), command=command))
        self.behave("serves")

    def behave(self, *behaviours: str) -> None:
        (self.folder / "behaviours").write_text("\n".join(behaviours))

    def go(self) -> None:
        """Lets an engine that "loads_until_go" become ready."""
        (self.folder / "go").touch()

    @property
    def pids(self) -> list[int]:
        """The process ids of all engines started so far."""
        starts = self.folder / "starts"
        return [int(pid) for pid in starts.read_text().split()] if starts.exists() else []

    @property
    def notes(self) -> list[str]:
        notes = self.folder / "notes"
        return notes.read_text().splitlines() if notes.exists() else []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EngineInfo]:
        """Runs the client during the block. Its engine is ready."""
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                yield await nursery.start(self.client.run)
                nursery.cancel_scope.cancel()

    def ask(self, command: int, *tokens: int) -> Generation:
        return self.client.generate([Submit(self.client.next_id(), [command, *tokens], 10, PARAMS)])


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    monkeypatch.setattr(supervisor, "RESTART_PAUSE", 0.01)
    monkeypatch.setattr(process, "END_LIMIT", SECONDS)
    monkeypatch.setattr(connection, "INSPECT_LIMIT", SECONDS)
    return Engines(tmp_path)


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes set no events
            await trio.sleep(0.005)


async def collect(generation: Generation) -> tuple[list[int], str]:
    """All tokens of a request and why it ended."""
    with generation:
        return await rest(generation)


async def rest(generation: Generation) -> tuple[list[int], str]:
    tokens: list[int] = []
    while True:
        [(_, output)] = await generation.receive()
        tokens += output.tokens
        if output.finish_reason is not None:
            return tokens, output.finish_reason


async def next_tokens(generation: Generation) -> list[int]:
    """The new tokens of a request with one sequence."""
    [(_, output)] = await generation.receive()
    return output.tokens


async def assert_fails(generation: Generation, reason: str) -> None:
    """Asserts that a running request ends with a 500."""
    with pytest.raises(ApiError) as raised:
        await rest(generation)
    assert (raised.value.status, raised.value.message) == (500, reason)


STOPPED = "the model's engine was stopped; please try again"
TWICE = "the engine crashed twice while it computed only this request: "


# Starting


async def test_the_client_is_ready_once_the_engine_is(engines: Engines) -> None:
    assert engines.client.info is None
    async with engines.running() as info:
        assert info == engines.client.ready_info()
        assert info.pid == engines.pids[0]
        assert (info.description, info.ctx_len) == ("tiny.gguf", 77)  # the configuration arrived
    assert engines.client.info is None


async def test_requests_are_refused_before_the_engine_is_ready(engines: Engines) -> None:
    with pytest.raises(ApiError) as raised:
        await collect(engines.ask(ECHO, 5))
    assert (raised.value.status, raised.value.code) == (503, "model_loading")
    assert engines.client.num_active == 0


async def test_an_engine_that_cannot_load_reports_the_reason(engines: Engines) -> None:
    engines.behave("fails", "serves")
    with trio.fail_after(SECONDS), pytest.raises(EngineFailedError, match="it is broken"):
        await engines.client.run()
    assert len(engines.pids) == 1, "a failed first start is not retried"
    assert is_gone(engines.pids[0])


HOW: dict[str, str] = {
    "exits": "exited with code 3",
    "sends_garbage": "sent a message that cannot be read",
    "aborts": "crashed (SIGABRT): ggml.c:7: GGML_ASSERT(false) failed",
    "segfaults": "crashed (SIGSEGV)",
    "is_killed": "was killed (SIGKILL), perhaps because memory ran out",
    "raises": "crashed: KeyError: 5",
}


@pytest.mark.parametrize("behaviour", HOW)
async def test_an_engine_that_ends_while_loading_is_an_error_with_the_reason(
    engines: Engines, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if behaviour == "sends_garbage":  # it does not end by itself
        monkeypatch.setattr(process, "END_LIMIT", 0.1)
    engines.behave(behaviour)
    with trio.fail_after(SECONDS), pytest.raises(EngineFailedError) as raised:
        await engines.client.run()
    assert str(raised.value) == f"while loading the model, the engine {HOW[behaviour]}"
    await wait_until(lambda: is_gone(engines.pids[0]))


async def test_cancelling_the_client_while_the_engine_loads_ends_the_engine(engines: Engines) -> None:
    engines.behave("loads_forever")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engines.client.run)
        await wait_until(lambda: len(engines.pids) == 1)
        nursery.cancel_scope.cancel()
    assert is_gone(engines.pids[0])


# Serving


async def test_a_request_gets_its_tokens_and_its_finish_reason(engines: Engines) -> None:
    async with engines.running():
        assert await collect(engines.ask(ECHO, 5, 6, 7)) == ([5, 6, 7], "stop")
        assert engines.client.num_active == 0
    assert engines.notes == ["submit 1"]


async def test_concurrent_requests_get_their_own_tokens(engines: Engines) -> None:
    answers: dict[int, list[int]] = {}

    async def ask(number: int) -> None:
        tokens, _ = await collect(engines.ask(ECHO, *range(number, number + 10)))
        answers[number] = tokens

    async with engines.running():
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, number)
        assert engines.client.num_active == 0
    assert answers == {number: list(range(number, number + 10)) for number in range(40)}


async def test_outputs_of_unknown_and_ended_requests_are_ignored(engines: Engines) -> None:
    async with engines.running() as info:
        for _ in range(3):
            assert await collect(engines.ask(STRANGERS, 5, 6)) == ([5, 6], "stop")
        assert engines.client.info == info


async def test_leaving_cancels_a_request_only_if_it_still_runs(engines: Engines) -> None:
    async with engines.running():
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
        with engines.ask(HOLD, 8) as generation:
            assert await next_tokens(generation) == [8]
            assert engines.client.num_active == 1
        assert engines.client.num_active == 0
        engines.client.cancel(2)
        engines.client.cancel(99)
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    assert engines.notes == ["submit 1", "submit 2", "cancel 2", "submit 3"]


async def test_leaving_works_in_a_cancelled_task(engines: Engines) -> None:
    async with engines.running():
        with trio.move_on_after(0.05):
            await collect(engines.ask(SILENCE))
        assert engines.client.num_active == 0
        await wait_until(lambda: engines.notes == ["submit 1", "cancel 1"])


async def test_a_large_prompt_and_a_large_answer_arrive_complete(engines: Engines) -> None:
    tokens = list(range(30_000))
    async with engines.running():
        assert await collect(engines.ask(ECHO, *tokens)) == (tokens, "stop")


async def test_statistics_come_from_the_engine(engines: Engines) -> None:
    async with engines.running():
        reports = [await engines.client.inspect() for _ in range(3)]
    assert [report.scheduler["running"] for report in reports if report] == [1, 2, 3]
    assert await engines.client.inspect() is None


async def test_a_busy_engine_has_its_last_known_statistics(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engines.running():
        first = await engines.client.inspect()
        assert first is not None
        (engines.folder / "busy").touch()
        monkeypatch.setattr(connection, "INSPECT_LIMIT", 0.05)
        assert await engines.client.inspect() == first


async def test_an_inspection_gets_its_own_report_after_another_was_cancelled(engines: Engines) -> None:
    async with engines.running():
        with trio.move_on_after(0):
            await engines.client.inspect()
        reports = [await engines.client.inspect() for _ in range(2)]
        assert [report.scheduler["running"] for report in reports if report] == [2, 3]


async def test_an_unanswered_inspection_of_a_dead_engine_does_not_affect_the_next(engines: Engines) -> None:
    async with engines.running() as info:
        (engines.folder / "busy").touch()
        with trio.move_on_after(0.05):
            await engines.client.inspect()
        os.kill(info.pid, signal.SIGKILL)
        await next_engine(engines, info)
        (engines.folder / "busy").unlink()
        with trio.fail_after(SECONDS / 2):
            report = await engines.client.inspect()
    assert report is not None
    assert report.scheduler["running"] == 1


# Engines that die


async def next_engine(engines: Engines, info: EngineInfo) -> EngineInfo:
    await wait_until(lambda: engines.client.info is not None and engines.client.info.pid != info.pid)
    return engines.client.ready_info()


async def test_requests_continue_on_the_next_engine_without_losing_tokens(engines: Engines) -> None:
    engines.behave("serves", "loads_until_go")
    async with engines.running() as info:
        with engines.ask(PAUSE, 5, 6, 7) as begun, engines.ask(ECHO, 8) as done:
            assert await next_tokens(begun) == [5]
            assert await rest(done) == ([8], "stop")
            os.kill(info.pid, signal.SIGKILL)
            await wait_until(lambda: engines.client.info is None)
            with pytest.raises(ApiError) as refused, engines.ask(ECHO, 5):
                pass
            assert refused.value.status == 503, "new requests are refused until the next engine is ready"
            engines.go()
            assert await rest(begun) == ([6, 7], "stop")
        assert engines.client.num_active == 0
        assert engines.client.ready_info() == replace(info, pid=engines.pids[1])
    assert is_gone(engines.pids[0])
    assert engines.notes == ["submit 1", "submit 2", "submit 1 after [5]"]


async def test_an_engine_that_replaces_a_watched_one_is_watched(engines: Engines) -> None:
    shown: list[Snapshot] = []
    async with engines.running() as info:
        engines.client.watch(shown.append)
        await wait_until(lambda: len(shown) == 1)
        os.kill(info.pid, signal.SIGKILL)
        info = await next_engine(engines, info)
        await wait_until(lambda: len(shown) == 2)
        engines.client.watch(None)
        os.kill(info.pid, signal.SIGKILL)
        await next_engine(engines, info)
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    assert len(shown) == 2
    assert engines.notes == ["watch True", "watch True", "watch False", "submit 1"] or engines.notes == [
        "watch True",
        "watch True",
        "submit 1",
    ], "the second engine may be killed before it reads"


async def test_all_sequences_of_a_request_continue_on_the_next_engine(engines: Engines) -> None:
    async with engines.running() as info:
        submits = [Submit(engines.client.next_id(), [PAUSE, n, n + 1], 10, PARAMS) for n in (20, 30)]
        with engines.client.generate(submits) as generation:
            tokens: dict[int, list[int]] = {0: [], 1: []}
            while not (tokens[0] and tokens[1]):
                for index, output in await generation.receive():
                    tokens[index] += output.tokens
            os.kill(info.pid, signal.SIGKILL)
            while engines.client.num_active or tokens != {0: [20, 21], 1: [30, 31]}:
                for index, output in await generation.receive():
                    tokens[index] += output.tokens


async def test_a_request_that_crashes_engines_fails_after_two_crashes_alone_and_no_other_does(
    engines: Engines,
) -> None:
    async with engines.running():
        with engines.ask(PAUSE, 8, 9) as other, engines.ask(DIE, 5) as deadly:
            assert await next_tokens(other) == [8]
            await assert_fails(deadly, TWICE + "it does not like 5")
            assert await rest(other) == ([9], "stop")
        await wait_until(lambda: engines.client.info is not None)
        assert len(engines.pids) == 4, "one crash with the other request, two without"
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    assert "cancel" not in " ".join(engines.notes), "the requests of a dead engine are not cancelled on the next one"


async def test_a_request_outlives_any_number_of_killed_engines(engines: Engines) -> None:
    async with engines.running() as info:
        with engines.ask(SILENCE) as waiting:
            for _ in range(4):
                os.kill(info.pid, signal.SIGKILL)
                info = await next_engine(engines, info)
            waiting.end(0)
        with engines.ask(PAUSE, 5, 6, 7) as begun:
            assert await next_tokens(begun) == [5]
            os.kill(info.pid, signal.SIGKILL)
            assert await rest(begun) == ([6, 7], "stop")


async def test_a_request_cancelled_while_no_engine_runs_does_not_reach_the_next(engines: Engines) -> None:
    engines.behave("serves", "loads_until_go")
    async with engines.running() as info:
        with engines.ask(HOLD, 8) as generation:
            assert await next_tokens(generation) == [8]
            os.kill(info.pid, signal.SIGKILL)
            await wait_until(lambda: engines.client.info is None)
        assert engines.client.num_active == 0
        engines.go()
        await next_engine(engines, info)
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    assert engines.notes == ["submit 1", "submit 2"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("fails", "it is broken"),
        ("aborts", f"while loading the model, the engine {HOW['aborts']}"),
        ("dies_at_once", "the engine crashed (SIGABRT)"),
    ],
)
async def test_requests_get_the_reason_after_five_failed_starts(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, behaviour: str, reason: str
) -> None:
    monkeypatch.setattr(supervisor, "MAX_RESTART_PAUSE", 0.01)
    engines.behave("serves", *[behaviour] * 4, "serves", behaviour)
    async with engines.running() as info:
        with engines.ask(PAUSE, 5, 6) as begun, engines.ask(HOLD, 8) as held:
            assert await next_tokens(begun) == [5]
            assert await next_tokens(held) == [8]
            os.kill(info.pid, signal.SIGKILL)
            assert await rest(begun) == ([6], "stop")
            assert await next_tokens(held) == [8]
            os.kill(engines.client.ready_info().pid, signal.SIGKILL)
            await assert_fails(held, f"the model cannot be loaded again: {reason}")
        assert len(engines.pids) == 1 + 4 + 1 + supervisor.MAX_FAILED_STARTS


async def test_requests_fail_when_the_client_is_cancelled(engines: Engines) -> None:
    async with engines.running():
        generation = engines.ask(HOLD, 8)
        generation.__enter__()
        assert await next_tokens(generation) == [8]
    with trio.fail_after(SECONDS):
        await assert_fails(generation, STOPPED)


async def test_an_engine_that_is_killed_while_idle_is_replaced(engines: Engines) -> None:
    async with engines.running() as info:
        for number in range(3):
            os.kill(info.pid, signal.SIGKILL)
            info = await next_engine(engines, info)
            assert await collect(engines.ask(ECHO, number)) == ([number], "stop")
    assert len(engines.pids) == 4


async def test_a_request_submitted_while_the_engine_dies_runs_on_the_next(engines: Engines) -> None:
    async with engines.running() as info:
        os.kill(info.pid, signal.SIGKILL)
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")  # the client has not noticed the death yet


async def test_a_complete_answer_survives_the_engine(engines: Engines) -> None:
    engines.behave("serves", "loads_until_go")
    async with engines.running() as info:
        with engines.ask(ECHO, 5, 6) as generation:
            await wait_until(lambda: engines.client.num_active == 0)
            os.kill(info.pid, signal.SIGKILL)
            await wait_until(lambda: engines.client.info is None)
            [(_, output)] = await generation.receive()
            assert (output.tokens, output.finish_reason, output.error) == ([5, 6], "stop", None)
        engines.go()  # the next engine may have started already, and ends only after it has loaded


async def test_an_engine_that_sends_garbage_is_replaced(engines: Engines) -> None:
    async with engines.running() as info:
        with engines.ask(GARBAGE, 5) as generation:
            assert await rest(generation) == ([5], "stop")
        await next_engine(engines, info)
        assert is_gone(info.pid)


@pytest.mark.parametrize("behaviour", ["fails", "exits"])
async def test_failed_restarts_are_retried_after_growing_pauses(
    engines: Engines, behaviour: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines.behave("serves", *[behaviour] * 4, "serves", behaviour, "serves")
    monkeypatch.setattr(supervisor, "MAX_RESTART_PAUSE", 0.05)
    async with engines.running() as info:
        os.kill(info.pid, signal.SIGKILL)
        info = await next_engine(engines, info)
        assert len(engines.pids) == 6
        os.kill(info.pid, signal.SIGKILL)
        await next_engine(engines, info)
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    pauses = [record.args[1] for record in caplog.records if isinstance(record.args, tuple) and "in %" in record.msg]
    assert pauses == [0.01, 0.02, 0.04, 0.05, 0.05, 0.01, 0.02]


async def test_the_reason_for_a_failed_restart_is_logged(engines: Engines, caplog: pytest.LogCaptureFixture) -> None:
    engines.behave("serves", "fails", "serves")
    async with engines.running() as info:
        os.kill(info.pid, signal.SIGKILL)
        await next_engine(engines, info)
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert errors[0].startswith("the engine was killed (SIGKILL), perhaps because memory ran out; starting another")
    assert "it is broken" in errors[1]


# Embeddings of texts


async def test_embeddings_come_back_in_the_order_of_their_texts(engines: Engines) -> None:
    async with engines.running():
        with engines.client.embed([[1, 2], [8]]) as embedding:
            assert engines.client.num_active == 1
            assert await embedding.receive() == ["[1, 2]", "[8]"]
        assert engines.client.num_active == 0
        assert await collect(engines.ask(ECHO, 5)) == ([5], "stop")
    assert engines.notes == ["embed 1", "submit 2"]


async def test_abandoned_embedding_requests_are_cancelled(engines: Engines) -> None:
    async with engines.running():
        with engines.client.embed([[1], [SILENCE]]), trio.move_on_after(0):
            await trio.sleep_forever()
        await engines.client.wait_idle()
        await wait_until(lambda: len(engines.notes) == 2)
    assert engines.notes == ["embed 1", "cancel 1"]


async def test_the_next_engine_completes_an_embedding_request(engines: Engines) -> None:
    async with engines.running() as info:
        with engines.client.embed([[1], [DIE_ONCE], [2]]) as embedding:
            assert await embedding.receive() == ["[1]", f"[{DIE_ONCE}]", "[2]"]
        assert engines.client.num_active == 0
        assert engines.client.ready_info().pid != info.pid
    assert engines.notes == ["embed 1", "embed 1"]


async def test_an_embedding_request_fails_after_it_killed_two_engines(engines: Engines) -> None:
    async with engines.running() as info:
        with (
            engines.client.embed([[1], [DIE], [2]]) as embedding,
            pytest.raises(ApiError) as raised,
        ):
            await embedding.receive()
        assert (raised.value.status, raised.value.message) == (500, TWICE + "crashed (SIGABRT)")
        assert engines.client.num_active == 0
        await next_engine(engines, info)
        with engines.client.embed([[8]]) as embedding:
            assert await embedding.receive() == ["[8]"]


async def test_embeddings_are_refused_before_the_engine_is_ready(engines: Engines) -> None:
    with pytest.raises(ApiError) as raised, engines.client.embed([[1]]):
        pass
    assert raised.value.status == 503


# Stopping


async def test_stop_ends_the_engine_and_the_client(engines: Engines) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(engines.client.run)
            engines.client.stop()
    assert is_gone(engines.pids[0])
    assert len(engines.pids) == 1
    assert engines.notes == ["stop"]


async def test_stop_fails_running_requests(engines: Engines) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(engines.client.run)
            with engines.ask(HOLD, 8) as generation:
                await generation.receive()
                engines.client.stop()
                with pytest.raises(ApiError):
                    await generation.receive()


async def test_stop_before_a_restart_prevents_the_restart(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_PAUSE", 10 * SECONDS)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            info = await nursery.start(engines.client.run)
            os.kill(info.pid, signal.SIGKILL)
            await wait_until(lambda: engines.client.info is None)
            engines.client.stop()
    assert len(engines.pids) == 1


async def test_an_engine_that_does_not_end_is_killed(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_LIMIT", 0.1)
    engines.behave("ignores_stop")
    with trio.fail_after(SECONDS):
        async with engines.running() as info:
            assert not is_gone(info.pid)
    await wait_until(lambda: is_gone(info.pid))


async def test_an_engine_gets_time_to_end(engines: Engines) -> None:
    """It is not killed while it flushes its output."""
    async with engines.running() as info:
        engine = psutil.Process(info.pid)
    assert not engine.is_running()
    assert not [child for child in psutil.Process().children() if child.pid == info.pid]


# Requests without a process


async def test_wait_idle_includes_requests_that_arrive_meanwhile() -> None:
    engine = FakeEngine()
    done = trio.Event()

    async def wait() -> None:
        await engine.wait_idle()
        done.set()

    async with trio.open_nursery() as nursery:
        with engine.generate([Submit(engine.next_id(), [1], 5, PARAMS)]):
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            with engine.generate([Submit(engine.next_id(), [2], 5, PARAMS)]):
                await wait_all_tasks_blocked()
                assert not done.is_set()
                engine.emit([], "stop", request_id=1)
                await wait_all_tasks_blocked()
                assert not done.is_set()
        with trio.fail_after(SECONDS):
            await done.wait()


async def test_wait_idle_returns_at_once_when_nothing_runs() -> None:
    engine = FakeEngine()
    with trio.fail_after(SECONDS):
        await engine.wait_idle()
        with engine.generate([Submit(engine.next_id(), [1], 5, PARAMS)]):
            pass
        await engine.wait_idle()


async def test_unread_outputs_are_merged_and_keep_the_cached_tokens_of_the_first() -> None:
    engine = FakeEngine()
    with engine.generate([Submit(engine.next_id(), [1], 9, PARAMS)]) as generation:
        engine.emit([4], cached_tokens=24)
        engine.emit([5])
        engine.emit([6, 7], "length")
        assert await generation.receive() == [(0, Output(1, [4, 5, 6, 7], "length", cached_tokens=24))]


async def test_a_request_whose_tokens_stay_unread_is_dropped(autojump_clock: MockClock) -> None:
    engine = FakeEngine()
    with engine.generate([Submit(engine.next_id(), [1], 9, PARAMS)]) as generation:
        engine.emit([4])
        await trio.sleep(UNREAD_LIMIT)
        engine.emit([5])
        assert engine.cancelled == []
        await trio.sleep(1)
        engine.emit([6])
        assert engine.cancelled == [1]
        with pytest.raises(ApiError, match="did not read the answer"):
            await generation.receive()


async def test_a_request_without_new_tokens_is_not_dropped(autojump_clock: MockClock) -> None:
    engine = FakeEngine()
    with engine.generate([Submit(engine.next_id(), [1], 9, PARAMS)]) as generation:
        await trio.sleep(10 * UNREAD_LIMIT)
        engine.emit([4])
        assert await next_tokens(generation) == [4]
        await trio.sleep(10 * UNREAD_LIMIT)
        engine.emit([5])
        assert await next_tokens(generation) == [5]
    assert engine.cancelled == [1]
