"""The models of one server: which there are, and how each comes and goes."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from api.engine.client import EngineClient
from api.engine.process import END_LIMIT, ENGINE_COMMAND, ENGINE_ENVIRONMENT, SHARED_CORES, EngineLauncher
from api.engine.supervisor import EngineFailedError
from api.errors import ApiError, unavailable
from api.flags import ModelOptions
from api.models.files import ModelFilesError, ModelNotFoundError, num_file_bytes
from api.serving.model import FAILED, LOADING, READY, STOPPING, UNLOADED, Slot
from api.serving.service import ModelService
from api.text.tokenizer import ModelError, Tokenizer
from scheduler.config import EngineInfo

_log = logging.getLogger("cortex.api")

IN_USE_SECONDS: Final = 1.0
"""For so long after a request has come it may not have reached the engine yet."""
ROOM_LIMIT: Final = 30.0
"""Seconds that a model may wait for others to be left alone for so long."""


class StartError(Exception):
    """A model that cannot be started; the message is one line for the user."""


class Fleet:
    """The models by name. One task runs `run`, in which their engines live."""

    def __init__(
        self,
        *,
        max_waiting: int,
        grace_seconds: float = 30.0,
        idle_limit: float = 0.0,
        on_demand: Callable[[str], ModelOptions | None] = lambda _: None,
        engine_command: tuple[str, ...] = ENGINE_COMMAND,
    ) -> None:
        """`on_demand` finds a model on disk that a request asks for, in a thread; None for one that it may not load. It
        raises ModelFilesError for one that is broken, ModelNotFoundError where there are several.

        A model that nobody has asked for anything for `idle_limit` seconds is unloaded until somebody does; 0 is never.
        """
        self.draining = False
        """Whether the server is shutting down."""
        self._max_waiting = max_waiting
        self._grace_seconds = grace_seconds
        self._idle_limit = idle_limit
        self._on_demand = on_demand
        self._engine_command = engine_command
        self._slots: dict[str, Slot] = {}
        """By the models' own names, in order of their start."""
        self._nursery: trio.Nursery | None = None
        self._one_at_a_time = trio.Lock()
        """Each model that is loaded must see what memory the one before it has left."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Ends every engine then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._unload_idle()

    def adopt(self, options: ModelOptions, service: ModelService) -> None:
        """Serve a model whose engine somebody else looks after."""
        self._slots[options.name] = Slot(options, service, READY, settled=_set_event())

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[Slot]:
        """All models, in order of their start."""
        return list(self._slots.values())

    def slot(self, name: str) -> Slot:
        """Raises ApiError 404 for a model that is not served."""
        slot = self._find(name)
        if slot is None:
            raise self._unknown(name)
        return slot

    async def service(self, name: str | None) -> ModelService:
        """What serves a request for this model, the first one for None; waits while it is loaded on request.

        Raises ApiError 404 for a model that is not served, 503 for one that is not there yet or cannot be loaded.
        """
        slot = await self._wanted(name)
        while True:  # what is waited for may be over when this task has its turn
            slot.last_used = trio.current_time()
            if slot.state == STOPPING and slot.comes_back:
                await slot.gone.wait()
            elif slot.state == UNLOADED and not self.draining:
                if self._slots.get(slot.options.name) is not slot:
                    raise self._unknown(slot.options.name)
                self._begin(slot, waits=True)
            elif slot.state == LOADING and slot.waits:
                await slot.settled.wait()
                if slot.failure:
                    raise _not_loaded(slot.failure)
            elif slot.service is not None:
                return slot.service
            else:
                raise unavailable("the model is being loaded; try again shortly", "model_loading")

    async def accepting(self, name: str, *, embeds: bool = False) -> ModelService:
        """The same for a request that generates, or one that `embeds`.

        Raises ApiError 503 while shutting down, 400 for what the model does not do, 429 when too many wait.
        """
        if self.draining and self._find(name) is not None:
            raise unavailable("The server is shutting down.", "shutting_down")
        service = await self.service(name)
        service.check_accepting(embeds=embeds)
        return service

    async def _wanted(self, name: str | None) -> Slot:
        if name is None:
            if not self._slots:
                raise ApiError(404, "No model is served just now.", param="model", code="model_not_found")
            return next(iter(self._slots.values()))
        slot = self._find(name)
        if slot is None:
            try:
                options = None if self.draining else await trio.to_thread.run_sync(self._on_demand, name)
            except ModelNotFoundError as error:
                raise ApiError(404, str(error), param="model", code="model_not_found") from error
            except ModelFilesError as error:
                raise _not_loaded(str(error)) from error
            slot = self._find(name)  # somebody else may have asked for it meanwhile
            if slot is None and options is None:
                raise self._unknown(name)
            if slot is None and options is not None:
                slot = self._of_file(options.path)
            if slot is None and options is not None:
                slot = self._slots[options.name] = Slot(options, state=UNLOADED)
        assert slot is not None, "found or made"
        return slot

    def _of_file(self, path: Path) -> Slot | None:
        """The model of this file, which may have been asked for by a name that also leads to it."""
        path = path.resolve()
        return next((slot for slot in self.slots if slot.options.path.resolve() == path), None)

    def _find(self, name: str) -> Slot | None:
        return next((slot for slot in self._slots.values() if name in slot.names), None)

    def _unknown(self, name: str) -> ApiError:
        names = [each for slot in self.slots for each in slot.names]
        served = " and ".join(map(repr, names)) or "no model just now"
        message = f"The model {name!r} does not exist. This server serves {served}."
        return ApiError(404, message, param="model", code="model_not_found")

    # -- coming and going --------------------------------------------------------------------------------------------

    async def start(self, options: ModelOptions) -> Slot:
        """Load a model beside the others, if it is not there. Raises StartError.

        One that is there by this name must be as wanted.
        """
        if self.draining:
            raise StartError("the server is shutting down")
        slot = self._slots.get(options.name)
        if slot is not None and (difference := slot.options.difference(options)):
            again = f"'cortex stop {options.name}' makes room for another"
            raise StartError(f"{options.name} is served already, and {difference}; {again}")
        if slot is None:
            taken = [name for name in options.names if self._find(name)]
            if taken:
                raise StartError(f"another model is served by the name {taken[0]}")
            slot = self._slots[options.name] = Slot(options, state=UNLOADED)
        if slot.state == STOPPING:
            raise StartError(f"{options.name} is being stopped; try again when it has ended")
        if slot.state == UNLOADED:
            self._begin(slot, waits=False)
        await slot.settled.wait()
        if slot.service is not None:
            await slot.service.engine.wait_settled()
        if failure := slot.failure or (slot.service.engine.failure if slot.service else ""):
            raise StartError(failure)
        return slot

    async def stop(self, name: str) -> None:
        """Let a model's running answers end, for the grace period at most, then end its engine and forget it.

        Whoever asked for it may leave meanwhile. Raises ApiError 404 for a model that is not served.
        """
        slot = self.slot(name)
        with trio.CancelScope(shield=True):
            slot.comes_back = False
            if slot.state == LOADING:
                slot.state, slot.failure = STOPPING, "the model was stopped while it was loaded"
                slot.life.cancel()
                await slot.gone.wait()
            await self._unload(slot, self._grace_seconds)
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        if self._slots.get(slot.options.name) is slot:
            del self._slots[slot.options.name]

    def _begin(self, slot: Slot, *, waits: bool) -> None:
        assert self._nursery is not None, "engines live while the fleet runs"
        slot.state, slot.waits, slot.failure = LOADING, waits, ""
        slot.settled, slot.gone, slot.life = trio.Event(), trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._keep, slot)

    async def _keep(self, slot: Slot) -> None:
        """Load a model and keep its engine running until it is told to stop, or its life ends."""
        try:
            with slot.life:
                await self._live(slot)
        except* Exception as errors:  # whatever it is, the other models go on
            error = _first(errors)
            slot.failure = str(error).replace(str(slot.options.path), slot.options.path.name)
            expected = isinstance(error, EngineFailedError | ModelError | ModelFilesError | OSError)
            if slot.waits or not expected:  # else it is told to who started it
                trace = None if expected else error
                _log.error("%s cannot be loaded: %s", slot.options.name, slot.failure, exc_info=trace)
            if not slot.was_ready:
                self._forget(slot)
        finally:
            if slot.state == STOPPING and not slot.comes_back:
                self._forget(slot)  # at once, or a request would have it loaded again
            slot.service, slot.state = None, UNLOADED
            slot.settled.set()
            slot.gone.set()

    async def _live(self, slot: Slot) -> None:
        options = slot.options
        async with trio.open_nursery() as nursery:
            async with self._one_at_a_time:
                info = await self._load(slot, nursery)
            slot.state, slot.was_ready, slot.last_used = READY, True, trio.current_time()
            slot.settled.set()
            _log.info("%s %s", options.name, _in_words(info))

    async def _load(self, slot: Slot, nursery: trio.Nursery) -> EngineInfo:
        """Start its engine. What a request asks for may take the memory of models that nobody uses.

        The vocabulary comes behind the engine, which ends if llama.cpp aborts on it. Raises EngineFailedError,
        ModelError and ModelFilesError.
        """
        options = slot.options
        slot.num_bytes = num_file_bytes(options.path)
        while True:
            config = replace(options.engine, others_bytes=self._weights_in_memory())
            has_company = any(other.state == READY for other in self.slots)
            environment = ENGINE_ENVIRONMENT | (SHARED_CORES if has_company else {})
            engine = EngineClient(EngineLauncher(config, command=self._engine_command, environment=environment))
            info: EngineInfo
            try:
                info = await nursery.start(engine.run)
            except EngineFailedError as error:
                if not (slot.waits and error.missing_bytes and await self._make_room(error.missing_bytes)):
                    raise
            else:
                break
        tokenizer = await trio.to_thread.run_sync(Tokenizer, options.path)
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been stopped meanwhile
        slot.service = ModelService(
            options.names, tokenizer, engine, max_waiting=self._max_waiting, defaults=options.defaults
        )
        return info

    def _weights_in_memory(self) -> int:
        """Bytes of the models that are loaded: mapped from their files, so that the system counts them as available."""
        return sum(slot.num_bytes for slot in self.slots if slot.state == READY)

    async def _unload(self, slot: Slot, patience: float) -> None:
        service = slot.service
        if service is None:
            return
        life, gone = slot.life, slot.gone  # those who wait may begin another as soon as this one is over
        slot.state = STOPPING
        service.draining = not slot.comes_back
        with trio.move_on_after(patience):
            await service.engine.wait_idle()
        service.engine.fail_all("the model is being stopped")
        service.engine.stop()
        with trio.move_on_after(END_LIMIT):
            await gone.wait()
        life.cancel()
        await gone.wait()

    async def _unload_idle(self) -> None:
        """Look now and then who was not asked for anything for longer than allowed."""
        if not self._idle_limit:
            await trio.sleep_forever()
        while True:
            await trio.sleep(min(1.0, self._idle_limit))
            for slot in list(self._slots.values()):
                if not slot.is_idle:
                    slot.last_used = trio.current_time()
                elif trio.current_time() - slot.last_used >= self._idle_limit:
                    _log.info("%s was idle for %.0f s and is unloaded", slot.names[0], self._idle_limit)
                    await self._let_go(slot)

    async def _make_room(self, missing_bytes: int) -> bool:
        """Unload the model used longest ago of those that nobody uses. False if all of these would not do."""
        deadline = trio.current_time() + ROOM_LIMIT
        while idle := [slot for slot in self.slots if slot.is_idle]:
            slot = min(idle, key=lambda slot: slot.last_used)
            left_alone = slot.last_used + IN_USE_SECONDS
            if left_alone > deadline or sum(slot.resident_bytes for slot in idle) < missing_bytes:
                return False
            if left_alone <= trio.current_time():
                _log.info("%s is unloaded, to make room for another", slot.options.name)
                with trio.CancelScope(shield=True):  # whole, though nobody may want the other any more
                    await self._let_go(slot)
                return True
            await trio.sleep_until(left_alone)
        return False

    async def _let_go(self, slot: Slot) -> None:
        """Unload a model that nobody uses, until somebody does."""
        slot.comes_back = True
        await self._unload(slot, 0.0)

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new requests that generate."""
        self.draining = True
        for service in self._services():
            service.draining = True

    @property
    def num_active(self) -> int:
        """Sequences that have not ended, of all models."""
        return sum(service.engine.num_active for service in self._services())

    async def wait_idle(self) -> None:
        """Until no request is left."""
        for service in list(self._services()):
            await service.engine.wait_idle()

    def end(self, reason: str) -> None:
        """End every request with an error."""
        for service in self._services():
            service.engine.fail_all(reason)

    async def close(self) -> None:
        """Let every engine end now, and wait until they have."""
        leaving = [slot for slot in self.slots if slot.service is not None]
        for service in self._services():
            service.engine.stop()
        for slot in leaving:
            await slot.gone.wait()

    @property
    def status(self) -> str:
        """How the server is: draining, loading or failed if no model answers for that reason, or else ok."""
        if self.draining:
            return "draining"
        statuses = {slot.status for slot in self._slots.values()}
        return next((why for why in (LOADING, FAILED) if why in statuses and READY not in statuses), "ok")

    async def health(self) -> dict[str, Any]:
        """How the server is, and each of its models."""
        reasons = [slot.service.engine.failure for slot in self.slots if slot.service and slot.status == FAILED]
        health = {"status": self.status, "models": [await slot.health() for slot in self.slots]}
        return health | ({"reason": reasons[0]} if reasons else {})

    def _services(self) -> Iterator[ModelService]:
        return (slot.service for slot in self._slots.values() if slot.service is not None)


def _in_words(info: EngineInfo) -> str:
    """What a model does, and with what."""
    if not info.generates:
        return f"makes embeddings of texts of up to {info.max_text_tokens} tokens"
    layout = "lanes" if info.kv_layout == "lanes" else "one pool"
    return (
        f"answers (context {info.ctx_len}, {info.max_seqs} sequences at once, {info.kv_tokens} tokens of KV memory in "
        f"{layout}: {info.kv_layout_reason})"
    )


def _not_loaded(reason: str) -> ApiError:
    return ApiError(503, reason, kind="server_error", code="model_not_loaded")


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
