"""Runs batches, from the validation of their input files to their output files.

The state of each batch is in the BatchStore: whenever the process ends, the next one goes on from there. One task
drives each batch that has not ended, and one task runs each of its lines.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, Final, TypeVar

import trio

from api.errors import ApiError
from api.protocols.batches.lines import InputIndex
from api.protocols.batches.output import KINDS, Kind, ResultFile
from api.protocols.batches.room import Room, num_beside
from api.protocols.batches.work import Endpoint, Outcome, Work
from api.protocols.call import Server
from api.storage.batch import Batch, InputError, Line
from api.storage.batches import BatchStore
from api.storage.errors import StorageError
from api.storage.files import FileStore
from api.storage.storage import Storage
from api.tenants.tenant import Tenant

_log = logging.getLogger("cortex.api")

SLICE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of an input file that are checked at a time."""
PAGE: Final = 64
"""Lines that are looked up at a time."""
MAX_GROUPS: Final = 16
"""Models of one batch whose lines run at once. A batch may name any number."""
FIRST_PAUSE: Final = 1.0
MAX_PAUSE: Final = 30.0
"""Seconds before a line that was refused for now, or a failed disk, is tried again; each time twice as long."""
POLL_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 0.05
"""Between two removals of lines of ended batches."""

Tenants = Callable[[str, str], Tenant | None]
"""The tenant of a batch by the batch's owner and the tenant's name; None while the owner has no valid key."""
ResultT = TypeVar("ResultT")


class BatchRunner:
    """Runs the batches of a server. One task must run `run`."""

    def __init__(
        self,
        server: Server,
        storage: Storage,
        endpoints: Mapping[str, Endpoint],
        tenants: Tenants,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`endpoints`: by their paths. `now` returns seconds since the epoch."""
        self._server = server
        self._storage = storage
        self._batches: BatchStore = storage.batches
        self._files: FileStore = storage.files
        self._endpoints = endpoints
        self._tenants = tenants
        self._now = now
        self._rooms: dict[str, Room] = {}
        """By the models' own names."""
        self._driven: dict[int, trio.CancelScope] = {}
        """The batches that have a task, and the scopes around what they do now."""
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        """Set after a batch has ended, so that its lines are removed."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all batches that have not ended, and those that are made later. Runs until cancelled."""
        token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as self._nursery:
                self._batches.watch(lambda number: token.run_sync_soon(self._notice, number))
                task_status.started()
                self._nursery.start_soon(self._forget)
                for number in await self._persistently(self._batches.unfinished):
                    self._notice(number)
        finally:
            self._nursery = None

    def _notice(self, number: int) -> None:
        """A batch is new, or its state has changed."""
        if (scope := self._driven.get(number)) is not None:
            scope.cancel()
        elif self._nursery is not None:
            self._driven[number] = trio.CancelScope()
            self._nursery.start_soon(self._drive, number)

    async def _drive(self, number: int) -> None:
        """Bring a batch to its end."""
        try:
            batch: Batch | None = None
            while batch is None or not batch.is_over:
                with trio.CancelScope() as scope:
                    self._driven[number] = scope
                    batch = None  # after a notice it is read again
                    batch = await self._persistently(partial(self._batches.by_number, number))
                    if not batch.is_over:
                        await self._advance(batch)
        finally:
            del self._driven[number]
            self._ended.set()
        _log.info("batch %s: %s, %d of %d lines completed", batch.id, batch.status, batch.completed, batch.total)

    async def _advance(self, batch: Batch) -> None:
        """Bring a batch to its next status."""
        if batch.status in ("finalizing", "cancelling"):
            await self._write_files(batch)
            await self._persistently(partial(self._batches.end, batch.number))
            return
        await self._wait_for_models()
        with trio.move_on_after(max(batch.expires_at - self._now(), 0.0)):
            if batch.status == "validating":
                await self._validate(batch)
            else:
                await self._run_lines(batch)
            return
        await self._persistently(partial(self._batches.finalize, batch.number, "expired"))

    async def _wait_for_models(self) -> None:
        """Wait until the server's first model is loaded: before that, the server knows no model."""
        while True:
            if self._server.fleet.status != "loading":
                return
            await trio.sleep(POLL_SECONDS)

    # -- validation --------------------------------------------------------------------------------------------------

    async def _validate(self, batch: Batch) -> None:
        file = await self._input(batch)
        if file is None:
            error = InputError("file_not_found", f"The input file {batch.input_file!r} does not exist.")
            await self._persistently(partial(self._batches.fail, batch.number, [error]))
            return
        with file:
            index = InputIndex(file, batch.endpoint)
            while await self._storage.call(index.read, SLICE_BYTES):
                pass
        if index.errors:
            await self._persistently(partial(self._batches.fail, batch.number, index.errors))
            return
        known = [name for name in index.models if await self._server.fleet.knows(name)]
        lines = await self._storage.call(index.lines)
        begin = partial(self._batches.begin, batch.number, lines, len(lines), index.models, known)
        await self._persistently(begin)

    async def _input(self, batch: Batch) -> IO[bytes] | None:
        """The input file; None if it does not exist any more."""
        file = await self._persistently(partial(self._files.get, batch.owner, batch.input_file))
        if file is None:
            return None
        try:
            return await self._storage.call(self._files.open, file)
        except StorageError as error:
            _log.error("batch %s: %s", batch.id, error)
            return None

    # -- lines -------------------------------------------------------------------------------------------------------

    async def _run_lines(self, batch: Batch) -> None:
        file = await self._input(batch)
        if file is not None:
            with file:
                groups = trio.Semaphore(MAX_GROUPS)
                async with trio.open_nursery() as nursery:
                    for group, model in enumerate(batch.models):
                        await groups.acquire()
                        nursery.start_soon(self._run_group, batch, file.fileno(), group, model, groups)
        await self._persistently(partial(self._batches.finalize, batch.number, "completed"))

    async def _run_group(self, batch: Batch, file: int, group: int, model: str, groups: trio.Semaphore) -> None:
        """Run the lines of one model, as many at once as its engine computes. `file`: the input's descriptor."""
        room, after = self._room(model), -1
        async with trio.open_nursery() as nursery:
            pending = partial(self._batches.pending, batch.number, group)
            while lines := await self._persistently(partial(pending, after, PAGE)):
                for line in lines:
                    await self._permission(batch)
                    work = await self._storage.call(self._work, batch, file, line)
                    num_sequences = work.num_sequences if isinstance(work, Work) else 1
                    await room.enter(num_sequences)
                    nursery.start_soon(self._run_line, batch, line, work, room, num_sequences)
                after = lines[-1].place
        groups.release()

    def _work(self, batch: Batch, file: int, line: Line) -> Work | ApiError:
        """The request of a line, or why it is none. Runs in a thread."""
        try:
            return Work(os.pread(file, line.size, line.start), batch.endpoint, self._endpoints[batch.endpoint])
        except ApiError as error:
            return error
        except OSError as error:
            reason = f"The input file cannot be read: {error.strerror or error}"
            return ApiError(500, reason, kind="server_error", code="storage_error")

    async def _run_line(self, batch: Batch, line: Line, work: Work | ApiError, room: Room, num_sequences: int) -> None:
        try:
            outcome = await self._outcome(batch, work)
            await self._persistently(partial(self._record, batch.number, line, outcome))
        finally:
            room.leave(num_sequences)

    async def _outcome(self, batch: Batch, work: Work | ApiError) -> Outcome:
        """The answer of a line. Tries again as long as the line is refused for now."""
        if isinstance(work, ApiError):
            return Outcome.refused(work)
        pauses = _pauses()
        while True:
            tenant = await self._permission(batch)
            # A model that the server had when the batch began may come back: after a restart, for example.
            waits_for_model = work.model in batch.known_models
            outcome = await work.run(self._server, tenant, waits_for_model=waits_for_model)
            if outcome is not None:
                return outcome
            await trio.sleep(next(pauses))

    def _record(self, number: int, line: Line, outcome: Outcome) -> None:
        """Runs in a thread."""
        self._batches.record(number, line.line, outcome.line(line.custom_id), outcome.usage())

    async def _permission(self, batch: Batch) -> Tenant:
        """The tenant of a batch. Waits while it has no valid key, and while the server is shutting down."""
        while True:
            tenant = self._tenants(batch.owner, batch.tenant)
            if tenant is not None and not self._server.fleet.draining:
                return tenant
            await trio.sleep(POLL_SECONDS)

    def _room(self, model: str) -> Room:
        name = self._server.fleet.own_name(model) or model
        if name not in self._rooms:
            self._rooms[name] = Room(partial(self._capacity, name))
        return self._rooms[name]

    def _capacity(self, model: str, num_running: int) -> int:
        """See `Room`. One while the model is not loaded: it loads the model."""
        service = next((each.service for each in self._server.fleet.models if model in each.names), None)
        info = service.engine.info if service is not None else None
        if service is None or info is None:
            return 1
        return num_beside(max(service.num_active - num_running, 0), info.max_seqs)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _write_files(self, batch: Batch) -> None:
        pauses = _pauses()
        while True:
            try:
                for kind in KINDS:
                    await self._write_file(batch, kind)
            except StorageError as error:
                _log.error("batch %s: its files cannot be written: %s", batch.id, error)
                await trio.sleep(next(pauses))
            else:
                return

    async def _write_file(self, batch: Batch, kind: Kind) -> None:
        result = ResultFile(self._batches, self._files, batch, kind)
        try:
            while await self._storage.call(result.write):
                pass
        finally:
            with trio.CancelScope(shield=True):
                await self._storage.call(result.abort)

    async def _forget(self) -> None:
        """Remove the lines of ended batches, little by little."""
        while True:
            self._ended = trio.Event()
            has_more = True
            while has_more:
                has_more = await self._persistently(self._batches.forget_lines)
                await trio.sleep(FORGET_SECONDS)
            await self._ended.wait()

    async def _persistently(self, function: Callable[[], ResultT]) -> ResultT:
        """Call in a thread, again and again while the disk or the database fails."""
        pauses, said = _pauses(), ""
        while True:
            try:
                return await self._storage.call(function)
            except StorageError as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("batches wait: %s", said)
            await trio.sleep(next(pauses))


def _pauses() -> Iterator[float]:
    """Seconds before each next try."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, MAX_PAUSE)
