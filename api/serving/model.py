"""One model of a server: its state, its engine and its service, from loading to stopping."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import trio

from api.engine.process import END_LIMIT
from api.engine.supervisor import EngineFailedError
from api.errors import ApiError, unavailable
from api.flags import ModelOptions
from api.models.files import ModelFilesError
from api.serving.loader import ModelLoader
from api.serving.service import ModelService
from api.serving.state import TRANSITIONS, State, Status
from api.text.template import TemplateOrigin
from api.text.tokenizer import ModelError

_log = logging.getLogger("cortex.api")


@dataclass(eq=False, slots=True)
class _Life:
    """One period in memory, from `begin` to the end of the engine."""

    requests_wait: bool = False
    """Whether requests wait while it loads."""
    settled: trio.Event = field(default_factory=trio.Event)
    """Set once it is loaded or has failed."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Set once its engine has ended."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Contains all tasks of loading and of the engine."""


class ModelRuntime:
    """A model of a server, in memory or not. Owns its state (see State)."""

    def __init__(self, options: ModelOptions, loader: ModelLoader) -> None:
        self.options = options
        self.created = int(time.time())
        """Seconds since the epoch."""
        self._loader = loader
        self._state = State.UNLOADED
        self._life = _Life()
        self._service: ModelService | None = None
        self._failure = ""
        self._was_ready = False
        self._weight_bytes = self._mapped_bytes = 0
        self._last_used = 0.0

    # -- properties --------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Its own name and its aliases."""
        return self.options.names

    @property
    def state(self) -> State:
        return self._state

    @property
    def is_over(self) -> bool:
        """Whether it can never be loaded again."""
        return self._state.is_final

    @property
    def service(self) -> ModelService | None:
        """The service for its requests; None while it is not loaded."""
        return self._service

    @property
    def status(self) -> Status:
        if self._state is State.READY and self._service is not None and self._service.engine.info is None:
            return "failed" if self._service.engine.failure else "loading"  # its engine is being restarted
        return self._state.status

    @property
    def was_ready(self) -> bool:
        """Whether it has ever been ready."""
        return self._was_ready

    @property
    def takes_requests(self) -> bool:
        """Whether a request would be answered, now or after a load that the request waits for.

        A model that has never been ready may fail to load, so it does not count.
        """
        match self._state:
            case State.READY:
                return self.status == "ready"
            case State.UNLOADED | State.UNLOADING:
                return self._was_ready
            case State.LOADING:
                return self._was_ready and self._life.requests_wait
            case _:
                return False

    @property
    def failure(self) -> str:
        """Why loading it or restarting its engine failed; empty if nothing failed."""
        return self._failure or (self._service.engine.failure if self._service is not None else "")

    @property
    def num_active(self) -> int:
        """Number of sequences and embedding requests that have not ended, also of those that are being prepared."""
        return self._service.num_active if self._service is not None else 0

    @property
    def is_idle(self) -> bool:
        """Whether it is ready and has no requests."""
        return self._state is State.READY and not self.num_active

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of prompt and answer, or of a text to embed; None while no engine is ready."""
        return self._service.context_length if self._service is not None else None

    @property
    def template_origin(self) -> TemplateOrigin | None:
        """Where its chat template comes from; None while it is not loaded, or if it generates no text."""
        return self._service.template_origin if self._service is not None and self._generates else None

    @property
    def template_line(self) -> str | None:
        """What its chat template shows about calls and thoughts; None like `template_origin`."""
        return self._service.prompts.learned_line if self._service is not None and self._generates else None

    @property
    def _generates(self) -> bool:
        info = self._service.engine.info if self._service is not None else None
        return info is None or info.generates

    @property
    def weight_bytes(self) -> int:
        """Size of its weights; 0 before it was first loaded."""
        return self._weight_bytes

    @property
    def mapped_bytes(self) -> int:
        """Bytes of its weights that the system counts as available memory; 0 before it was first loaded."""
        return self._mapped_bytes

    @property
    def resident_bytes(self) -> int:
        """Resident memory of its engine; 0 while it is not loaded."""
        return self._service.engine.resident_bytes if self._service is not None else 0

    @property
    def last_used(self) -> float:
        """When it was last used, on trio's clock."""
        return self._last_used

    async def health(self) -> dict[str, Any]:
        """Its health, as GET /healthz returns it and `cortex ps` shows it."""
        report = await self._service.health() if self._service is not None else ModelService.no_health()
        return {
            "model": self.names[0],
            "aliases": list(self.names[1:]),
            "path": str(self.options.path),
            "status": self.status,
        } | report

    # -- requests ----------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Record that it is used now."""
        self._last_used = trio.current_time()

    async def wait_for_service(self) -> ModelService | None:
        """The service for a request. Waits while the model is being unloaded, or loaded because of a request.

        Returns None if the model is unloaded (the caller must load it first), stopped or failed.
        Raises ApiError 503 if loading failed, or if the model is being started explicitly or was stopped while loading.
        """
        while True:  # the state may change again before this task is scheduled
            self.touch()
            life = self._life
            if self._state is State.UNLOADING:
                await life.ended.wait()
            elif self._state is State.LOADING and life.requests_wait:
                await life.settled.wait()
                if self._failure:
                    raise not_loaded(self._failure)
            elif self._service is not None:
                return self._service
            elif self._state is State.UNLOADED or self.is_over:
                return None
            else:
                raise still_loading()

    def drain(self) -> None:
        """Refuse new requests that generate or embed, because the server is shutting down."""
        if self._service is not None:
            self._service.draining = True

    def fail_all(self, reason: str) -> None:
        """End every request with an error."""
        if self._service is not None:
            self._service.engine.fail_all(reason)

    async def wait_idle(self) -> None:
        """Wait until all requests have ended."""
        if self._service is not None:
            await self._service.wait_idle()

    # -- life cycle --------------------------------------------------------------------------------------------------

    def begin(self, *, requests_wait: bool) -> None:
        """Enter LOADING. One task must then call `run`. `requests_wait`: whether requests wait meanwhile."""
        self._enter(State.LOADING)
        self._life, self._failure = _Life(requests_wait), ""

    async def run(self) -> None:
        """Load the model and keep its engine running until it is unloaded or stopped. An error is kept in `failure`."""
        life = self._life
        try:
            with life.scope:
                async with trio.open_nursery() as nursery:
                    loaded = await self._loader.load(self.options, nursery, may_make_room=life.requests_wait)
                    self._weight_bytes, self._mapped_bytes = loaded.weight_bytes, loaded.mapped_bytes
                    self._become_ready(loaded.service)
                    self.touch()
        except* Exception as errors:  # an error of this model must not stop the others
            self._record_failure(_first(errors), is_reported=not life.requests_wait)
        finally:
            self._end(life)

    def adopt(self, service: ModelService) -> None:
        """Enter READY with a service whose engine the caller runs."""
        self.begin(requests_wait=False)
        self._become_ready(service)

    async def wait_loaded(self) -> str:
        """Wait until it is ready or has failed, also while its engine is restarted. Returns its `failure`."""
        await self._life.settled.wait()
        if self._service is not None:
            await self._service.engine.wait_settled()
        return self.failure

    async def wait_ended(self) -> None:
        """Wait until its engine has ended."""
        await self._life.ended.wait()

    def stop_engine(self) -> None:
        """Stop its engine now, if it is loaded."""
        if self._service is not None:
            self._service.engine.stop()

    async def unload(self) -> None:
        """End its engine. The next request loads the model again. The model must be idle."""
        self._enter(State.UNLOADING)
        await self._shut_down(0.0)

    async def stop(self, grace_seconds: float) -> None:
        """Stop it for good. Running answers may finish within the grace period.

        Completes even if the caller is cancelled.
        """
        with trio.CancelScope(shield=True):
            match self._state:
                case State.UNLOADED:
                    self._enter(State.STOPPED)
                case State.LOADING:
                    self._enter(State.ABORTING)
                    self._failure = "the model was stopped while it was loading"
                    self._life.scope.cancel()
                    await self.wait_ended()
                case State.READY | State.UNLOADING:
                    self._enter(State.DRAINING)
                    await self._shut_down(grace_seconds)
                case State.DRAINING:
                    await self._shut_down(grace_seconds)
                case State.ABORTING:
                    await self.wait_ended()
                case State.STOPPED | State.FAILED:
                    pass

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self._state], f"{self._state.name} does not become {state.name}"
        self._state = state

    def _become_ready(self, service: ModelService) -> None:
        self._enter(State.READY)
        self._service, self._was_ready = service, True
        self._life.settled.set()

    async def _shut_down(self, grace_seconds: float) -> None:
        """Let running requests finish, then end the engine: by force after END_LIMIT."""
        service, life = self._service, self._life  # a request may start the next life as soon as this one ends
        assert service is not None, "a model without a service cannot shut down"
        service.draining = self._state is State.DRAINING
        with trio.move_on_after(grace_seconds):
            await service.wait_idle()
        service.engine.fail_all("the model is being stopped")
        service.engine.stop()
        with trio.move_on_after(END_LIMIT):
            await life.ended.wait()
        life.scope.cancel()
        await life.ended.wait()

    def _record_failure(self, error: BaseException, *, is_reported: bool) -> None:
        """`is_reported`: whether a caller receives the failure. Expected errors are then not logged."""
        self._failure = str(error).replace(str(self.options.path), self.options.path.name)
        expected = isinstance(error, EngineFailedError | ModelError | ModelFilesError | OSError)
        if not (expected and is_reported):
            trace = None if expected else error
            _log.error("%s cannot be loaded: %s", self.options.name, self._failure, exc_info=trace)

    def _end(self, life: _Life) -> None:
        self._service = None
        if self._state in (State.DRAINING, State.ABORTING):
            self._enter(State.STOPPED)
        elif self._failure and not self._was_ready:
            self._enter(State.FAILED)
        else:
            self._enter(State.UNLOADED)
        life.settled.set()
        life.ended.set()


def still_loading() -> ApiError:
    return unavailable("the model is being loaded; try again shortly", "model_loading")


def not_loaded(reason: str) -> ApiError:
    return ApiError(503, reason, kind="server_error", code="model_not_loaded")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
