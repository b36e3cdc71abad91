"""The API's end of the wire: starts the engine process, watches it, and hands its outputs to the streams."""

import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import orjson
import psutil
import trio

from api.engine.generation import Draft, Embedding, Generation
from api.errors import unavailable
from scheduler.config import EngineConfig, EngineInfo
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Inspect,
    Message,
    Output,
    Ready,
    Report,
    Step,
    Stop,
    Submit,
    decode,
    encode,
)

_log = logging.getLogger("cortex.api")

ENGINE_COMMAND: Final = (sys.executable, "-P", "-m", "scheduler")
"""Without the current folder on the path, which may hold a `scheduler` of the user's own."""
ENGINE_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Unless the user says otherwise. A debugger that attaches to a dead engine delays the next one; gigabytes of KV memory
in huge pages are there in a fifth of the time."""
SHARED_CORES: Final = {"GOMP_SPINCOUNT": "1000"}
"""The same for an engine beside others. llama.cpp's threads spin while they wait for each other; where engines share
cores they would spin on those that another's threads need."""
RESTART_PAUSE: Final = 1.0
"""Seconds before an engine that died is started again, doubled after each start that did not get ready."""
MAX_RESTART_PAUSE: Final = 30.0
INSPECT_LIMIT: Final = 1.0
"""Seconds to wait for statistics: a step of a large model may take longer than who asks has time."""
END_LIMIT: Final = 10.0
"""Seconds that an engine may take to end, a step in flight included, before it is killed."""

_GONE: Final = "the engine ended unexpectedly; please try again"


class EngineFailedError(Exception):
    """The engine could not load the model; the message is one line for the user."""

    def __init__(self, reason: str, missing_bytes: int = 0) -> None:
        """`missing_bytes` of memory, if with these it could have."""
        super().__init__(reason)
        self.missing_bytes = missing_bytes


class EngineClient:
    """The engine process of one model, started again when it dies. One task runs `run`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: tuple[str, ...] = ENGINE_COMMAND,
        environment: Mapping[str, str] = ENGINE_ENVIRONMENT,
    ) -> None:
        """`environment`: variables that the engine gets unless the user says otherwise."""
        self._config = config
        self._command = command
        self._environment = environment
        self.info: EngineInfo | None = None
        """What the engine serves; None while none is ready."""
        self.failure = ""
        """Why none could be started again, the last time that it was tried."""
        self._settled = trio.Event()
        """Set while an engine is ready, or the last one could not be started."""
        self._requests: dict[int, Generation | Embedding] = {}
        """By the ids of what runs for them."""
        self._orphans: set[int] = set()
        """Of these, those whose first engine is gone."""
        self._idle = trio.Event()
        self._idle.set()
        self._last_request_id = 0
        self._outbox: trio.MemorySendChannel[Message] | None = None
        self._reports: list[trio.MemorySendChannel[Report]] = []
        self._last_report: Report | None = None
        self._stopping = trio.Event()

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Sequences that have not ended, running and waiting, and requests for vectors."""
        return len(self._requests)

    @property
    def resident_bytes(self) -> int:
        """What the engine has in memory, its weights included; 0 while none is ready."""
        try:
            return psutil.Process(self.info.pid).memory_info().rss if self.info else 0
        except psutil.NoSuchProcess:
            return 0

    def generate(self, drafts: Iterable[Draft]) -> Generation:
        """A request of one sequence or more, submitted when its `with` block is entered."""
        return Generation(self, [self._submit(draft) for draft in drafts])

    def _submit(self, draft: Draft) -> Submit:
        self._last_request_id += 1
        return Submit(
            self._last_request_id,
            draft.tokens,
            draft.max_tokens,
            draft.params,
            logprobs=draft.logprobs,
            score_prompt=draft.score_prompt,
            grammar=draft.grammar,
        )

    def embed(self, texts: list[list[int]]) -> Embedding:
        """A request for the vectors of some texts, submitted when its `with` block is entered."""
        self._last_request_id += 1
        return Embedding(self, Embed(self._last_request_id, texts))

    def ready_info(self) -> EngineInfo:
        """Raises ApiError 503 while no engine is ready."""
        if self.info is None and self.failure:
            raise unavailable(f"the model cannot be loaded again: {self.failure}", "model_not_loaded")
        if self.info is None:
            raise unavailable("the model is being loaded; try again shortly", "model_loading")
        return self.info

    async def wait_settled(self) -> None:
        """Until an engine is ready, or could not be started: then there is a `failure`."""
        await self._settled.wait()

    async def wait_idle(self) -> None:
        """Until no request is left."""
        while self.num_active:
            await self._idle.wait()

    async def inspect(self) -> Report | None:
        """Statistics from the engine, which answers between two steps: the last ones known if that takes long."""
        send, receive = trio.open_memory_channel[Report](1)
        self._reports.append(send)
        self._post(Inspect())
        with trio.move_on_after(INSPECT_LIMIT if self._outbox else 0.0):
            self._last_report = await receive.receive()
        return self._last_report

    def start(self, request_id: int, request: Generation | Embedding) -> None:
        """For api.engine.generation. Raises ApiError 503 while no engine is ready."""
        self.ready_info()
        if not self._requests:
            self._idle = trio.Event()
        self._requests[request_id] = request
        self._post(request.message(request_id))

    def cancel(self, request_id: int) -> None:
        """End a request; one that is unknown or has ended is left alone."""
        if self._forget(request_id):
            self._post(Cancel(request_id))

    def _post(self, message: Message) -> None:
        if self._outbox is not None:
            self._outbox.send_nowait(message)

    # -- the process -------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`; `started` with the first one that is ready.

        Raises EngineFailedError if that one cannot load the model.
        """
        try:
            await self._run(task_status)
        finally:
            self._settled.set()
            self.fail_all(_GONE)

    async def _run(self, task_status: trio.TaskStatus[EngineInfo]) -> None:
        pause, starts = RESTART_PAUSE, 0
        while True:
            info, failed = None, Failed("the engine ended while loading the model; the log may say why")
            async with self._process() as stream:
                async for message in _messages(stream):
                    if isinstance(message, Ready):
                        info = self.info = message.info
                        self.failure = ""
                        self._settled.set()
                        starts += 1
                        _log.info("engine %d serves %s", info.pid, info.description)
                        if starts == 1:
                            task_status.started(info)
                        self._go_on()
                    elif isinstance(message, Failed):
                        path = self._config.model_path  # where it lies is no client's business
                        failed = replace(message, reason=message.reason.replace(path, Path(path).name))
                    else:
                        self._dispatch(message)
            if self._stopping.is_set() and starts:
                return
            if not starts:
                raise EngineFailedError(failed.reason, failed.missing_bytes)
            if not info:
                self.failure = failed.reason
                self._settled.set()
            pause = RESTART_PAUSE if info else min(2 * pause, MAX_RESTART_PAUSE)
            reason = "the engine is gone" if info else failed.reason
            _log.error("%s; starting another in %.0f s", reason, pause)
            with trio.move_on_after(pause):
                await self._stopping.wait()
                return

    def stop(self) -> None:
        """Let the engine end now."""
        self._stopping.set()
        self._post(Stop())

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[trio.SocketStream]:
        """An engine process, with a task that sends it what is posted. It ends with the block."""
        ours, theirs = socket.socketpair()
        with ExitStack() as undo, theirs:
            undo.enter_context(ours)
            process = await trio.lowlevel.open_process(
                [*self._command, str(theirs.fileno()), orjson.dumps(asdict(self._config)).decode()],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**self._environment, **os.environ},
            )
            undo.pop_all()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._outbox, posted = trio.open_memory_channel[Message](math.inf)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, posted)
                yield stream
                nursery.cancel_scope.cancel()
        finally:
            self.info = self._outbox = None
            if self._settled.is_set():
                self._settled = trio.Event()
            self._outlive()
            self._reports.clear()
            self._last_report = None
            ours.close()  # by which it knows that nobody is left to serve
            with trio.move_on_after(END_LIMIT, shield=True):
                await process.wait()
            if process.returncode is None:
                process.kill()
                with trio.move_on_after(END_LIMIT, shield=True):
                    await process.wait()

    def _dispatch(self, message: Message) -> None:
        match message:
            case Step(outputs):
                for output in outputs:
                    self._deliver(output)
            case Embedded(request_id):
                embedding = self._requests.get(request_id)
                if isinstance(embedding, Embedding) and embedding.deliver(message):
                    self._forget(request_id)
            case Report():
                if self._reports:
                    self._reports.pop(0).send_nowait(message)
            case _:
                pass

    def _deliver(self, output: Output) -> None:
        generation = self._requests.get(output.request_id)
        if not isinstance(generation, Generation):
            return
        if not generation.deliver(output):
            _log.warning("request %d: its client stopped reading; dropped", output.request_id)
            self.cancel(output.request_id)
        elif output.finish_reason is not None:
            self._forget(output.request_id)

    def _forget(self, request_id: int) -> bool:
        """Whether there was anything to forget."""
        request = self._requests.pop(request_id, None)
        self._orphans.discard(request_id)
        if not self._requests:
            self._idle.set()
        return request is not None

    def _outlive(self) -> None:
        """Keep the requests of an engine that is gone for the next one, but once only: it may have died of them."""
        for request_id in tuple(self._requests):
            if request_id in self._orphans:
                self._fail(request_id, _GONE)
            else:
                self._orphans.add(request_id)

    def _go_on(self) -> None:
        """Ask a new engine for the rest of what the one before it left."""
        if self._requests:
            _log.info("%d go on where the engine before left them", len(self._requests))
        for request_id, request in self._requests.items():
            self._post(request.message(request_id))

    def fail_all(self, reason: str) -> None:
        """End every request with an error."""
        for request_id in tuple(self._requests):
            self._fail(request_id, reason)

    def _fail(self, request_id: int, reason: str) -> None:
        self._requests[request_id].fail(request_id, reason)
        self.cancel(request_id)


async def _messages(stream: trio.SocketStream) -> AsyncIterator[Message]:
    """What the engine says, until it is gone."""
    pending = b""
    while True:
        try:
            data = await stream.receive_some(1 << 16)
        except trio.BrokenResourceError:
            return
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            try:
                message = decode(line)
            except ValueError:
                _log.exception("the engine speaks another version of the wire")
                return
            yield message


async def _send(stream: trio.SocketStream, posted: trio.MemoryReceiveChannel[Message]) -> None:
    async for message in posted:
        try:
            await stream.send_all(encode(message))
        except trio.BrokenResourceError:
            return  # the reader notices too, and says so
