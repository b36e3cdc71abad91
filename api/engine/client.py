"""Requests to the engine of one model: who waits for which outputs."""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from api.engine.generation import Embedding, Generation
from api.engine.supervisor import Launcher, Supervisor
from api.errors import unavailable
from scheduler.config import EngineInfo
from scheduler.messages import Cancel, Embed, Embedded, Message, Output, Report, Step, Submit

_log = logging.getLogger("cortex.api")

_GONE: Final = "the engine ended unexpectedly; please try again"


class EngineClient:
    """Requests to the engine of one model. One task runs `run`, which keeps an engine running."""

    def __init__(self, launcher: Launcher) -> None:
        self._supervisor = Supervisor(launcher, self)
        self._requests: dict[int, Generation | Embedding] = {}
        """By request id. A generation has an id for each of its sequences."""
        self._orphans: set[int] = set()
        """The ids whose first engine has ended."""
        self._idle = trio.Event()
        self._idle.set()
        self._last_request_id = 0

    # -- the engine --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo | None:
        """What the engine serves; None while none is ready."""
        return self._supervisor.info

    @property
    def failure(self) -> str:
        """Why the engine could not be started again, at the last attempt; empty if it was."""
        return self._supervisor.failure

    @property
    def resident_bytes(self) -> int:
        """What the engine has in memory, its weights included; 0 while none is ready."""
        return self._supervisor.resident_bytes

    def ready_info(self) -> EngineInfo:
        """Raises ApiError 503 while no engine is ready."""
        if self.info is None and self.failure:
            raise unavailable(f"the model cannot be loaded again: {self.failure}", "model_not_loaded")
        if self.info is None:
            raise unavailable("the model is being loaded; try again shortly", "model_loading")
        return self.info

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`; `started` with the first one that is ready.

        Raises EngineFailedError if the first one cannot load the model, OSError if one cannot be started.
        """
        try:
            await self._supervisor.run(task_status)
        finally:
            self.fail_all(_GONE)

    def stop(self) -> None:
        """Let the engine end now, and start no other."""
        self._supervisor.stop()

    async def wait_settled(self) -> None:
        """Until an engine is ready, or could not be started: then there is a `failure`."""
        await self._supervisor.wait_settled()

    async def inspect(self) -> Report | None:
        """Statistics from the engine, or the last ones if it is busy; None without an engine."""
        return await self._supervisor.inspect()

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Sequences that have not ended, running and waiting, and requests for embeddings."""
        return len(self._requests)

    def next_id(self) -> int:
        """A request id that no other Submit or Embed of this client has."""
        self._last_request_id += 1
        return self._last_request_id

    def generate(self, submits: Sequence[Submit]) -> Generation:
        """A request of one sequence or more, submitted when its `with` block is entered. Each id is a `next_id`."""
        return Generation(self, submits)

    def embed(self, texts: list[list[int]]) -> Embedding:
        """A request for the embeddings of some texts, submitted when its `with` block is entered."""
        return Embedding(self, Embed(self.next_id(), texts))

    async def wait_idle(self) -> None:
        """Until no request is left."""
        while self.num_active:
            await self._idle.wait()

    def start(self, request_id: int, request: Generation | Embedding) -> None:
        """For api.engine.generation. Raises ApiError 503 while no engine is ready."""
        self.ready_info()
        if not self._requests:
            self._idle = trio.Event()
        self._requests[request_id] = request
        self._post(request.message(request_id))

    def cancel(self, request_id: int) -> None:
        """End a request. Does nothing if it is unknown or has ended."""
        if self._forget(request_id):
            self._post(Cancel(request_id))

    def fail_all(self, reason: str) -> None:
        """End every request with an error."""
        for request_id in tuple(self._requests):
            self._fail(request_id, reason)

    def _fail(self, request_id: int, reason: str) -> None:
        self._requests[request_id].fail(request_id, reason)
        self.cancel(request_id)

    def _forget(self, request_id: int) -> bool:
        """Returns whether the request was known."""
        request = self._requests.pop(request_id, None)
        self._orphans.discard(request_id)
        if not self._requests:
            self._idle.set()
        return request is not None

    def _post(self, message: Message) -> None:
        self._supervisor.post(message)

    # -- for the supervisor ------------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """Ask a new engine for the rest of what the one before left."""
        if self._requests:
            _log.info("%d requests resume on the new engine", len(self._requests))
        for request_id, request in self._requests.items():
            self._post(request.message(request_id))

    def on_gone(self) -> None:
        """Keep the requests for the next engine, but once only: the engine may have died of them."""
        for request_id in tuple(self._requests):
            if request_id in self._orphans:
                self._fail(request_id, _GONE)
            else:
                self._orphans.add(request_id)

    def on_message(self, message: Message) -> None:
        """Deliver outputs and embeddings. What is about an unknown request is ignored."""
        match message:
            case Step(outputs):
                for output in outputs:
                    self._deliver(output)
            case Embedded(request_id):
                embedding = self._requests.get(request_id)
                if isinstance(embedding, Embedding) and embedding.deliver(message):
                    self._forget(request_id)
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
