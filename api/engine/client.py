"""The client of one model's engine: submits requests and delivers the engine's outputs to them."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from api.engine.drain import DrainRate
from api.engine.embeds import Embeds
from api.engine.ending import Ending
from api.engine.generation import Embedding, Generation, Watcher
from api.engine.supervisor import Launcher, Supervisor
from api.engine.suspicion import Suspicion
from api.errors import unavailable
from api.tenants.tenant import LOCAL, Priority, Tenant
from scheduler.config import EngineInfo
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Message,
    Output,
    Queue,
    Report,
    Snapshot,
    Step,
    Submit,
    Watch,
)

_log = logging.getLogger("cortex.api")

_CANNOT_LOAD: Final = "the model cannot be loaded again: "
_STOPPED: Final = "the model's engine was stopped; please try again"


class EngineClient:
    """Submits requests to the engine of one model. One task must run `run`, which keeps an engine running."""

    def __init__(self, launcher: Launcher, loading: trio.Lock | None = None) -> None:
        """An engine that replaces another holds `loading` until it is ready. For the first one, the caller holds it."""
        self._supervisor = Supervisor(launcher, self, loading or trio.Lock())
        self._requests: dict[int, Generation | Embedding] = {}
        """The open requests by id. A generation has one id for each of its sequences."""
        self._suspicion = Suspicion()
        self._embeds = Embeds(self._post_request, self._suspicion)
        self._idle = trio.Event()
        self._idle.set()
        self._last_request_id = 0
        self._viewer: Callable[[Snapshot], None] | None = None
        self.drain = DrainRate(0.0)
        """How fast sequences and requests for embeddings end."""

    # -- the engine --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo | None:
        """Properties of the ready engine; None while no engine is ready."""
        return self._supervisor.info

    @property
    def failure(self) -> str:
        """Why the last restart failed; empty if it succeeded."""
        return self._supervisor.failure

    @property
    def num_restarts(self) -> int:
        """Number of engines that became ready after the first one."""
        return self._supervisor.num_restarts

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the engine, weights included; 0 while no engine is ready."""
        return self._supervisor.resident_bytes

    def ready_info(self) -> EngineInfo:
        """Raises ApiError 503 while no engine is ready."""
        if self.info is None and self.failure:
            raise unavailable(_CANNOT_LOAD + self.failure, "model_not_loaded")
        if self.info is None:
            raise unavailable("the model is being loaded; try again shortly", "model_loading")
        return self.info

    async def run(self, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep an engine running until `stop`. Calls `started` with the properties of the first ready engine.

        Raises EngineFailedError if the first engine cannot load the model, OSError if an engine cannot be started.
        """
        try:
            await self._supervisor.run(task_status)
        finally:
            self.fail_all(_STOPPED)

    def stop(self) -> None:
        """Stop the engine now, and start no other."""
        self._supervisor.stop()

    async def wait_settled(self) -> None:
        """Wait until an engine is ready or a restart has failed. After a failed restart, `failure` is set."""
        await self._supervisor.wait_settled()

    async def inspect(self) -> Report | None:
        """Returns the engine's statistics, or the previous ones if the engine is busy; None if there are none."""
        return await self._supervisor.inspect()

    @property
    def report_age(self) -> float:
        """Seconds since the engine's last statistics arrived; 0 if there are none."""
        return self._supervisor.report_age

    def watch(self, viewer: Callable[[Snapshot], None] | None) -> None:
        """Give what the engine shows of itself to `viewer`, also after a restart. None ends this."""
        self._viewer = viewer
        self._post(Watch(viewer is not None))

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Number of sequences (running and waiting) and embedding requests that have not ended."""
        return len(self._requests)

    def next_id(self) -> int:
        """A request id that is unique among the Submits and Embeds of this client."""
        self._last_request_id += 1
        return self._last_request_id

    def generate(self, submits: Sequence[Submit], watcher: Watcher | None = None) -> Generation:
        """A request of one or more sequences, submitted when its `with` block is entered.

        The ids of the submits must come from `next_id`.
        """
        return Generation(self, submits, watcher)

    def embed(
        self,
        texts: list[list[int]],
        tenant: Tenant = LOCAL,
        priority: Priority | None = None,
        watcher: Watcher | None = None,
    ) -> Embedding:
        """A request for the embeddings of tokenized texts, submitted when its `with` block is entered.

        `priority`: the class that it asks for; None for the tenant's.
        """
        embed = Embed(self.next_id(), texts, tenant.name, tenant.weight, tenant.class_of(priority))
        return Embedding(self, embed, watcher)

    async def wait_idle(self) -> None:
        """Wait until all requests have ended."""
        while self.num_active:
            await self._idle.wait()

    def start(self, request_id: int, request: Generation | Embedding) -> None:
        """Register and submit a request (for api.engine.generation). Raises ApiError 503 while no engine is ready."""
        self.ready_info()
        if not self._requests:
            self._idle = trio.Event()
            self.drain.restart(trio.current_time())
        self._requests[request_id] = request
        self._submit(request_id, request)

    def cancel(self, request_id: int) -> None:
        """Cancel a request. Does nothing if it is unknown or has ended."""
        if request_id in self._requests:
            self._post(Cancel(request_id))
            self._forget(request_id)

    def fail_all(self, reason: str) -> None:
        """End every request with an error that says nothing about the request: no engine computes it any more."""
        for request_id in tuple(self._requests):
            self._fail(request_id, reason, is_interrupted=True)

    def _fail(self, request_id: int, reason: str, *, is_interrupted: bool = False) -> None:
        self._requests[request_id].fail(request_id, reason, is_interrupted=is_interrupted)
        self.cancel(request_id)

    def _forget(self, request_id: int) -> None:
        self._requests.pop(request_id).forget(request_id)
        self.drain.left(trio.current_time())
        self._suspicion.forget(request_id)
        self._embeds.end(request_id)
        if not self._requests:
            self._idle.set()

    def _submit(self, request_id: int, request: Generation | Embedding) -> None:
        if isinstance(request, Embedding):
            self._embeds.add(request_id)
        else:
            self._post_request(request_id)

    def _post_request(self, request_id: int) -> None:
        request = self._requests[request_id]
        if isinstance(request, Embedding):
            self._post(request.message(request_id))
        else:
            self._post(request.message(request_id, num_alone=self._suspicion.num_alone(request_id)))

    def _post(self, message: Message) -> None:
        self._supervisor.post(message)

    # -- for the supervisor ------------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """Resume the open requests on a new engine."""
        if self._viewer is not None:
            self._post(Watch(True))
        if self._requests:
            _log.info("%d requests resume on the new engine", len(self._requests))
        for request_id, request in self._requests.items():
            self._submit(request_id, request)

    def on_gone(self, ending: Ending) -> None:
        """Keep all requests for the next engine, except one that is known to crash engines."""
        self._embeds.clear()
        if not ending.crashed:
            return
        guilty = self._suspicion.crashed(ending.suspects, self._requests)
        if guilty is not None:
            _log.error("request %d ends: two engines crashed while they computed only this request", guilty)
            self._fail(guilty, f"the engine crashed twice while it computed only this request: {ending.cause}")

    def on_failure(self, reason: str) -> None:
        """End the requests that wait for an engine: it is not known when there will be one."""
        self.fail_all(_CANNOT_LOAD + reason)

    def on_message(self, message: Message) -> bool:
        """Deliver outputs, embeddings and positions. Messages about unknown requests are ignored.

        Returns whether a request has come forward.
        """
        match message:
            case Step(outputs):
                came_forward = [self._deliver(output) for output in outputs]
                return any(came_forward)
            case Snapshot():
                if self._viewer is not None:
                    self._viewer(message)
                return False
            case Queue(request_ids):
                self._move(request_ids)
                return False
            case Embedded(request_id):
                embedding = self._requests.get(request_id)
                if not isinstance(embedding, Embedding):
                    return False
                if embedding.deliver(message):
                    self._forget(request_id)
                return True
            case _:
                return False

    def _move(self, request_ids: Sequence[int]) -> None:
        """Record the positions of requests. The first sequence of a request counts."""
        positions: dict[Generation, int] = {}
        for position, request_id in enumerate(request_ids, 1):
            request = self._requests.get(request_id)
            if isinstance(request, Generation):
                positions.setdefault(request, position)
        for request, position in positions.items():
            request.move(position)

    def _deliver(self, output: Output) -> bool:
        """Returns whether the request has come forward."""
        request_id = output.request_id
        generation = self._requests.get(request_id)
        if not isinstance(generation, Generation):
            return False
        self._suspicion.advance(request_id, len(output.tokens))  # the engine computes suspects alone
        if not generation.deliver(output):
            _log.warning("request %d was dropped: its client does not read its answer", request_id)
            self.cancel(request_id)
        elif output.finish_reason is not None:
            self._forget(request_id)
        return bool(output.tokens or output.prompt_logprobs or output.finish_reason)
