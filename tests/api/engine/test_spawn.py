"""An engine that was started ahead becomes the first one of its model, or ends."""

import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from api.engine.client import EngineClient
from api.engine.process import EngineLauncher
from api.engine.spawn import Ahead, spawn
from api.engine.supervisor import EngineFailedError
from scheduler.config import EngineConfig
from tests.api.servers import SECONDS, is_gone, wait_until

SCRIPT = Path(__file__).parents[1] / "scripted_engine.py"
CONFIG = EngineConfig("tiny.gguf", ctx_len=77)


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "behaviours").write_text("serves")
    return (sys.executable, str(SCRIPT), str(tmp_path))


def pids(folder: Path) -> list[int]:
    starts = folder / "starts"
    return list(map(int, starts.read_text().split())) if starts.exists() else []


async def served_by(config: EngineConfig, ahead: Ahead, command: tuple[str, ...]) -> int:
    """The process id of the first engine of a model."""
    client = EngineClient(EngineLauncher(config, command=command, ahead=ahead))
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            info = await nursery.start(client.run)
            nursery.cancel_scope.cancel()
    return int(info.pid)


def test_it_becomes_the_first_engine_and_no_other_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    ahead = Ahead(CONFIG, command=command)
    wait_until(lambda: len(pids(tmp_path)) == 1, "no engine has started")
    first = trio.run(served_by, CONFIG, ahead, command)
    assert pids(tmp_path) == [first]
    second = trio.run(served_by, CONFIG, ahead, command)
    assert pids(tmp_path) == [first, second]
    assert is_gone(first)
    assert is_gone(second)


def test_it_ends_if_another_configuration_is_needed(tmp_path: Path, command: tuple[str, ...]) -> None:
    ahead = Ahead(CONFIG, command=command)
    wait_until(lambda: len(pids(tmp_path)) == 1, "no engine has started")
    pid = trio.run(served_by, replace(CONFIG, ctx_len=78), ahead, command)
    assert pids(tmp_path)[1:] == [pid]
    wait_until(lambda: is_gone(pids(tmp_path)[0]), "the engine has not ended")


def test_its_failure_is_that_of_the_start(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "behaviours").write_text("fails")
    ahead = Ahead(CONFIG, command=command)
    with pytest.RaisesGroup(pytest.RaisesExc(EngineFailedError, match="it is broken"), flatten_subgroups=True):
        trio.run(served_by, CONFIG, ahead, command)


def test_signals_to_the_process_group_do_not_interrupt_an_engine_that_starts(tmp_path: Path) -> None:
    blocked = "*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    show = f"import signal, sys; print({blocked}, file=open(sys.argv[1], 'w'))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    engine = spawn(CONFIG, command=(sys.executable, "-c", show, str(tmp_path / "mask")))
    assert engine.process.wait(SECONDS) == 0
    engine.socket.close()
    engine.record.close()
    numbers = {int(number) for number in re.findall(r"\d+", (tmp_path / "mask").read_text())}
    assert numbers >= {signal.SIGINT, signal.SIGTERM}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_another_model_does_not_get_it(tmp_path: Path, command: tuple[str, ...]) -> None:
    ahead = Ahead(CONFIG, command=command)
    other = trio.run(served_by, replace(CONFIG, model_path="other.gguf"), ahead, command)
    wait_until(lambda: len(pids(tmp_path)) == 2, "no engine has started")
    first = trio.run(served_by, CONFIG, ahead, command)
    assert set(pids(tmp_path)) == {first, other}


def test_a_crash_is_noticed_while_all_threads_are_busy(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "behaviours").write_text("aborts")

    async def play() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        await served_by(CONFIG, Ahead(CONFIG, command=command), command)

    with pytest.RaisesGroup(pytest.RaisesExc(EngineFailedError, match="GGML_ASSERT"), flatten_subgroups=True):
        trio.run(play)
