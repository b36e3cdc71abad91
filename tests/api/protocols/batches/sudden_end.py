"""Ends a process at instants of a batch, as kill -9 does, and lets another process go on.

Usage: python -m tests.api.protocols.batches.sudden_end MODEL FOLDER [NUMBER_OF_INSTANTS]

Instants are before each statement of SQL, before each fsync, and before and after each call of the disk. Without a
number, all are tried. Prints how many were tried. Exits with 1 if a line was not answered once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import orjson
import trio
from trio.testing import MockClock

from api.flags import ModelOptions
from api.http.operations import BATCH_ENDPOINTS
from api.protocols.batches.runner import BatchRunner
from api.protocols.call import Server
from api.serving.fleet import Fleet
from api.serving.live import Hub
from api.serving.service import ModelService
from api.storage.batch import Batch
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.messages import Output, Submit
from tests.api.fakes import MODEL, PATH, FakeEngine
from tests.api.protocols.batches.desk import CHAT, InlineStorage, P, T, anybody, jsonl, line

LINES = [line("a", "Hello"), line("bad", temperature=99), line("b", "Bye"), line("c", "Hello again")]
ENDED, KILLED = 0, 9


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Instants:
    """Counts instants, and ends the process at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.count = 0
        self._last = last

    def passed(self, *_: object) -> None:
        self.count += 1
        if self.count == self._last:
            os._exit(KILLED)


class MortalStorage(InlineStorage):
    def __init__(self, folder: Path, instants: Instants) -> None:
        super().__init__(folder)
        self._instants = instants
        self.database._connection.set_trace_callback(instants.passed)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._instants.passed()
        result = await super().call(function, *args, **kwargs)
        self._instants.passed()
        return result


async def live(folder: Path, tokenizer: Tokenizer, instants: Instants) -> None:
    """One life of a server, up to the end of the batch. The client makes the batch if there is none yet."""
    storage = MortalStorage(folder, instants)
    engine, fleet = FakeEngine(), Fleet(max_waiting=8)
    service = ModelService((MODEL,), tokenizer, engine, max_waiting=8)
    fleet.adopt(ModelOptions(MODEL, PATH, EngineConfig(str(PATH))), service)
    tokens = tokenizer.encode("Fine.", parse_special=False)

    def answer(submit: Submit) -> list[Output]:
        return [Output(submit.request_id, list(tokens), "stop")]

    engine.answer = answer
    runner = BatchRunner(
        Server(fleet, 0.0, Hub(fleet, by_tenant=False), storage=storage), storage, BATCH_ENDPOINTS, anybody
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(runner.run)
        if not storage.batches.page(""):
            upload = storage.files.begin("", "in.jsonl", "batch")
            upload.write(jsonl(LINES))
            storage.batches.create("", "user:ann", CHAT, upload.finish().id, None, None)
        while True:
            if storage.batches.page("")[0].is_over:
                break
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    storage.close()


def lived(folder: Path, tokenizer: Tokenizer, last: int | None) -> int:
    """Lives in a process of its own. Returns its exit code."""
    if (pid := os.fork()) == 0:
        instants = Instants(last)
        real = os.fsync

        def fsync(fd: int | HasFileno) -> None:
            instants.passed()
            real(fd)

        os.fsync = fsync
        try:
            trio.run(live, folder, tokenizer, instants, clock=MockClock(autojump_threshold=0))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        (folder / "count").write_text(str(instants.count))
        os._exit(ENDED)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fault(folder: Path) -> str:
    """What is wrong after the end of the batch; empty if nothing is."""
    storage = InlineStorage(folder)
    [batch] = storage.batches.page("")
    outputs, errors = read(storage, batch, batch.output_file), read(storage, batch, batch.error_file)
    results = storage.files.list("", "batch_output")
    names = {each.name for each in storage.files.folder.iterdir()}
    storage.close()
    if (batch.status, batch.completed, batch.failed) != ("completed", 3, 1):
        return f"it is {batch}"
    if (outputs, errors) != (["a", "b", "c"], ["bad"]):
        return f"the files have {outputs} and {errors}"
    if len(results) != 2:
        return f"there are {len(results)} result files"
    if not names >= {batch.output_file, batch.error_file} or len(names) > 4:  # a client may have uploaded twice
        return f"the folder has {names}"
    return ""


def read(storage: InlineStorage, batch: Batch, file_id: str | None) -> list[str]:
    file = storage.files.get(batch.owner, file_id or "")
    lines = storage.files.path(file).read_bytes().splitlines() if file is not None else []
    return [orjson.loads(each)["custom_id"] for each in lines]


def main() -> int:
    tokenizer, folder = Tokenizer(sys.argv[1]), Path(sys.argv[2])
    whole = folder / "whole"
    assert lived(whole, tokenizer, None) == ENDED
    count = int((whole / "count").read_text())
    wanted = int(sys.argv[3]) if len(sys.argv) > 3 else count
    tried = sorted({1 + number * (count - 1) // max(wanted - 1, 1) for number in range(wanted)})
    found = []
    for last in tried:
        place = folder / str(last)
        code = lived(place, tokenizer, last)
        if code not in (KILLED, ENDED) or lived(place, tokenizer, None) != ENDED:
            found.append(f"instant {last}: the process failed")
        elif reason := fault(place):
            found.append(f"instant {last}: {reason}")
    sys.stdout.write("".join(f"{each}\n" for each in (*found, f"tried {len(tried)} of {count} instants")))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
