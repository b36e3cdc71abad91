"""The crash record of an engine outlives the engine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler import crash_record
from scheduler.crash_record import MAX_IDS, MAX_REASON, CrashRecord
from scheduler.embedder import Embedder
from scheduler.engine import Engine
from scheduler.grammar import Compiled, GrammarCompiler
from scheduler.messages import Message, Submit
from scheduler.plan import Plan, Result
from scheduler.texts import Batch, Limits, Pooled
from tests.scheduler.fakes import FakeReader, FakeRunner, System, prompt
from tests.scheduler.test_engine import FakeWire, embed, no_tokenizer

ROOT = Path(__file__).parents[2]
CRASH = """
import os, signal, sys
from scheduler.crash_record import CrashRecord
record = CrashRecord(int(sys.argv[1]))
record.computing([5, 6])
record.compiling([7])
record.explain("it is\\nbroken")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def fd() -> Iterator[int]:
    fd = crash_record.create()
    yield fd
    os.close(fd)


def test_a_record_can_be_read_after_its_process_was_killed(fd: int) -> None:
    record = CrashRecord(fd)
    assert (record.request_ids, record.reason) == (frozenset(), "")
    subprocess.run([sys.executable, "-c", CRASH, str(fd)], pass_fds=[fd], cwd=ROOT, check=False)
    assert (record.request_ids, record.reason) == (frozenset({5, 6, 7}), "it is broken")


def test_each_step_replaces_the_requests_of_the_last_one() -> None:
    record = CrashRecord()
    record.computing(range(1, 100))
    record.computing([8])
    assert record.request_ids == {8}
    record.compiling([9])
    record.computing(())
    assert record.request_ids == {9}
    record.compiling(())
    assert record.request_ids == set()


def test_more_than_fits_is_cut_and_does_not_touch_the_other_fields() -> None:
    record = CrashRecord()
    record.compiling([7])
    record.explain("é" * MAX_REASON)
    record.computing(range(MAX_IDS + 10))
    assert record.request_ids == set(range(MAX_IDS))
    assert record.reason == "é" * (MAX_REASON // 2)


def test_a_record_that_a_crash_has_overwritten_can_be_read(fd: int) -> None:
    os.pwrite(fd, b"\xff" * crash_record.SIZE, 0)
    assert CrashRecord(fd).request_ids == set()
    os.pwrite(fd, b"\x7f" * crash_record.SIZE, 0)
    record = CrashRecord(fd)
    assert len(record.request_ids) == 1
    assert len(record.reason) == MAX_REASON


def test_an_engine_records_the_requests_of_each_step_and_of_each_batch_of_texts() -> None:
    record, seen = CrashRecord(), list[set[int]]()
    system, reader = System(), FakeReader("mean")

    def run(plan: Plan) -> Result:
        seen.append(set(record.request_ids))
        assert record.request_ids == {chunk.sequence.request_id for chunk in plan.chunks}
        return FakeRunner.run(system.runner, plan)

    def read(batch: Batch) -> Pooled:
        seen.append(set(record.request_ids))
        return FakeReader.read(reader, batch)

    class Wire(FakeWire):
        def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]:
            assert record.request_ids == set(), "nothing is computed between two steps"
            return super().receive(wait=wait, seconds=seconds)

    system.runner.run = run  # type: ignore[method-assign]
    reader.read = read  # type: ignore[method-assign]
    embedder = Embedder(lambda: reader, Limits(1000, 512, 64, cuts=True), "mean", 0.001)
    wire = Wire([[Submit(1, prompt(1, 5), 2), Submit(2, prompt(2, 5), 4)], [embed(3, 2), embed(4, 1)], [], [], []])
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, embedder, record).run()
    assert {1, 2} in seen
    assert {2} in seen
    assert {3, 4} in seen


def test_the_grammar_of_a_suspect_is_compiled_while_nothing_else_is_computed() -> None:
    """So a crash in the compiler is seen to be this request's own."""
    record, seen = CrashRecord(), list[set[int]]()

    class Compiler(GrammarCompiler):
        def _compile(self, source: str, answer: list[int]) -> Any:
            seen.append(set(record.request_ids))
            return super()._compile(source, answer)

    system = System()
    run = system.runner.run

    def run_after(plan: Plan) -> Result:
        assert seen, "the step waits for the grammar"
        return run(plan)

    system.runner.run = run_after  # type: ignore[method-assign]
    wire = FakeWire([[Submit(2, prompt(2, 5), 4), Submit(7, prompt(1, 5), 4, grammar="x", suspect=True)]])
    Engine(system.scheduler, system.runner, Compiler(no_tokenizer), wire, None, record).run()
    assert seen == [{7}]
    assert record.request_ids == set()
