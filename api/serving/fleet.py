"""The models of one server by name: finds, starts and stops them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from api.engine.client import EngineClient
from api.engine.process import EngineLauncher
from api.engine.spawn import Ahead
from api.engine.supervisor import Launcher
from api.errors import ApiError, unavailable
from api.flags import ModelOptions
from api.models.files import ModelFilesError, ModelNotFoundError
from api.serving.loader import ModelLoader
from api.serving.memory_policy import MemoryPolicy
from api.serving.model import ModelRuntime, not_loaded, still_loading
from api.serving.service import ModelService, Use
from api.serving.state import State, UnreadyReason
from scheduler.config import EngineConfig
from scheduler.messages import Report


class StartError(Exception):
    """A model cannot be started. The message is one line for the user."""


class Fleet:
    """The models of one server by name. One task must run `run`, in which their engines run."""

    def __init__(
        self,
        *,
        max_waiting: int,
        grace_seconds: float = 30.0,
        idle_limit: float = 0.0,
        on_demand: Callable[[str], ModelOptions | None] = lambda _: None,
        engine_command: tuple[str, ...] | None = None,
        log_format: str = "text",
        ahead: Ahead | None = None,
    ) -> None:
        """`on_demand` finds a requested model on disk, or returns None if it may not be loaded. It runs in a thread. It
        raises ModelFilesError if the model's files are broken, ModelNotFoundError if the name is ambiguous.

        `idle_limit`: seconds without use after which a model is unloaded until its next use; 0 means never.
        """
        self.draining = False
        """Whether the server is shutting down."""
        self._grace_seconds = grace_seconds
        self._on_demand = on_demand
        self._engine_command = engine_command
        self._log_format = log_format
        self._ahead = ahead
        self._models: dict[str, ModelRuntime] = {}
        """By the models' own names, in order of their start."""
        self._has_answered = False
        """Whether a model that is gone was ready."""
        self._memory = MemoryPolicy(lambda: self.models, idle_limit=idle_limit)
        self._loader = ModelLoader(self._memory, self._launcher, max_waiting=max_waiting)
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Cancellation ends every engine."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._memory.unload_idle()

    def adopt(self, options: ModelOptions, service: ModelService) -> None:
        """Serve a model whose engine the caller runs."""
        self._add(options).adopt(service)

    @property
    def idle_limit(self) -> float:
        """Seconds without use after which a model is unloaded; 0 means never."""
        return self._memory.idle_limit

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def models(self) -> list[ModelRuntime]:
        """All models, in order of their start."""
        return list(self._models.values())

    def model(self, name: str) -> ModelRuntime:
        """The model with this name or alias. Raises ApiError 404 if there is none."""
        model = self._find(name)
        if model is None:
            raise self._unknown(name)
        return model

    def names_of(self, name: str | None) -> tuple[str, ...]:
        """All names of the model with this name or alias, or of the first model for None.

        A name that no model has is its only one. Empty for None without a model.
        """
        model = self._find(name) if name is not None else next(iter(self._models.values()), None)
        if model is not None:
            return model.names
        return () if name is None else (name,)

    def own_name(self, name: str | None) -> str:
        """The own name of the model with this name or alias; of the first model for None; empty if there is none."""
        model = self._find(name) if name is not None else next(iter(self._models.values()), None)
        return model.names[0] if model is not None else ""

    async def service(self, name: str | None) -> ModelService:
        """The service of a model, or of the first model for None. Loads an unloaded model and waits until it is ready.

        Raises ApiError 404 if there is no such model, 503 if it is not ready yet or cannot be loaded.
        """
        model = await self._requested(name)
        while (service := await model.wait_for_service()) is None:
            if self.draining:
                raise still_loading()
            if model.state is not State.UNLOADED:  # it has been stopped meanwhile
                raise self._unknown(model.options.name)
            self._load(model, requests_wait=True)
        return service

    async def accepting(self, name: str, use: Use = "generate") -> ModelService:
        """As `service`, for a request that has this use for the model. Checks that the model accepts it.

        Raises ApiError 503 while shutting down, 400 if the model cannot do it, 429 if too many requests wait.
        """
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down")
        service = await self.service(name)
        service.check_accepting(use)
        return service

    async def knows(self, name: str) -> bool:
        """Whether a request could name this model: it is served, or on disk and may be loaded on demand."""
        try:
            return self._find(name) is not None or await self._on_disk(name) is not None
        except ApiError as error:
            return error.status != 404  # its files are broken

    async def _requested(self, name: str | None) -> ModelRuntime:
        """The model that a request names. It is added to the fleet if it is on disk and may be loaded on demand."""
        if name is None:
            if not self._models:
                raise ApiError(404, "No model is being served.", param="model", code="model_not_found")
            return next(iter(self._models.values()))
        model = self._find(name)
        if model is not None:
            return model
        options = await self._on_disk(name)
        if (model := self._find(name)) is not None:  # another request has added it meanwhile
            return model
        if options is None:
            raise self._unknown(name)
        return self._of_file(options.path) or self._add(options)

    async def _on_disk(self, name: str) -> ModelOptions | None:
        try:
            return None if self.draining else await trio.to_thread.run_sync(self._on_demand, name)
        except ModelNotFoundError as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from error
        except ModelFilesError as error:
            raise not_loaded(str(error)) from error

    def _of_file(self, path: Path) -> ModelRuntime | None:
        """The model of this file. Several names may lead to the same file."""
        path = path.resolve()
        return next((model for model in self.models if model.options.path.resolve() == path), None)

    def _find(self, name: str) -> ModelRuntime | None:
        return next((model for model in self._models.values() if name in model.names), None)

    def _unknown(self, name: str) -> ApiError:
        names = [each for model in self.models for each in model.names]
        served = " and ".join(map(repr, names)) or "no model at the moment"
        message = f"The model {name!r} does not exist. This server serves {served}."
        return ApiError(404, message, param="model", code="model_not_found")

    # -- starting and stopping ---------------------------------------------------------------------------------------

    async def start(self, options: ModelOptions) -> ModelRuntime:
        """Load a model beside the others, unless it is loaded already. Returns once it is ready.

        Raises StartError if it cannot be loaded, or if a model with this name has another file or other options.
        """
        if self.draining:
            raise StartError("the server is shutting down")
        model = self._models.get(options.name)
        if model is not None and (difference := model.options.difference(options)):
            remedy = f"stop it first with 'cortex stop {options.name}'"
            raise StartError(f"{options.name} is already being served, and {difference}; {remedy}")
        if model is None:
            taken = [name for name in options.names if self._find(name)]
            if taken:
                raise StartError(f"the name {taken[0]} is in use by another model")
            model = self._add(options)
        if model.status == "stopping":
            raise StartError(f"{options.name} is being stopped; try again when it has ended")
        if model.state is State.UNLOADED:
            self._load(model, requests_wait=False)
        if failure := await model.wait_loaded():
            raise StartError(failure)
        return model

    async def stop(self, name: str) -> None:
        """Let running answers of a model finish within the grace period, then end its engine and remove the model.

        Completes even if the caller is cancelled. Raises ApiError 404 if there is no such model.
        """
        model = self.model(name)
        await model.stop(self._grace_seconds)
        self._forget(model)

    def _add(self, options: ModelOptions) -> ModelRuntime:
        model = self._models[options.name] = ModelRuntime(options, self._loader)
        return model

    def _forget(self, model: ModelRuntime) -> None:
        if self._models.get(model.options.name) is model:
            del self._models[model.options.name]
            self._has_answered |= model.was_ready

    def _load(self, model: ModelRuntime, *, requests_wait: bool) -> None:
        assert self._nursery is not None, "engines run only while the fleet runs"
        model.begin(requests_wait=requests_wait)
        self._nursery.start_soon(self._run_model, model)

    async def _run_model(self, model: ModelRuntime) -> None:
        try:
            await model.run()
        finally:
            if model.is_over:  # removed at once, so that no request finds it
                self._forget(model)

    def _launcher(self, config: EngineConfig) -> Launcher:
        config = replace(config, log_format=self._log_format)
        return EngineLauncher(config, command=self._engine_command, ahead=self._ahead)

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse new requests that generate or embed."""
        self.draining = True
        for model in self.models:
            model.drain()

    @property
    def num_active(self) -> int:
        """Number of sequences and embedding requests that have not ended, of all models."""
        return sum(model.num_active for model in self.models)

    async def wait_idle(self) -> None:
        """Wait until all requests have ended."""
        for model in self.models:
            await model.wait_idle()

    def end(self, reason: str) -> None:
        """End every request with an error."""
        for model in self.models:
            model.fail_all(reason)

    async def close(self) -> None:
        """Stop all engines except those that are still loading. Returns once they have ended."""
        leaving = [model for model in self.models if model.service is not None]
        for model in leaving:
            model.stop_engine()
        for model in leaving:
            await model.wait_ended()

    @property
    def status(self) -> str:
        """The server's status: draining; ok if a model takes requests; else loading or failed if one is in that state.

        It is loading until the first model is ready. Later it is ok without a model.
        """
        if self.draining:
            return "draining"
        if any(model.takes_requests for model in self.models):
            return "ok"
        statuses = {model.status for model in self.models}
        others = "ok" if self._has_answered or any(model.was_ready for model in self.models) else "loading"
        return next((why for why in ("loading", "failed") if why in statuses), others)

    @property
    def unready_reason(self) -> UnreadyReason | None:
        """Why a request to the first model would not be answered now; None if it would.

        An unloaded model is no reason: the request loads it.
        """
        if self.draining:
            return "draining"
        model = next(iter(self._models.values()), None)
        if model is None:
            return "no_model"
        if model.status == "unloaded":
            return None
        if model.status != "ready":
            return model.status
        return "queue_full" if model.service is not None and model.service.admission.is_full else None

    async def reports(self) -> dict[str, Report]:
        """The statistics of each model with an engine, by the models' own names: old ones if it is too busy."""
        reports: dict[str, Report] = {}

        async def ask(name: str, engine: EngineClient) -> None:
            report = await engine.inspect()
            if report is not None:
                reports[name] = report

        async with trio.open_nursery() as nursery:  # all at once: a busy engine answers late
            for model in self.models:
                if model.service is not None:
                    nursery.start_soon(ask, model.names[0], model.service.engine)
        return reports

    async def health(self) -> dict[str, Any]:
        """The status of the server, and the health of each model."""
        reasons = [model.failure for model in self.models if model.status == "failed"]
        healths: dict[str, dict[str, Any]] = {}

        async def ask(model: ModelRuntime) -> None:
            healths[model.options.name] = await model.health()

        models = self.models
        async with trio.open_nursery() as nursery:  # all at once: a busy engine answers late
            for model in models:
                nursery.start_soon(ask, model)
        health = {"status": self.status, "models": [healths[model.options.name] for model in models]}
        return health | ({"reason": reasons[0]} if reasons else {})
