"""The engine: loads a model and turns requests into tokens, one step after another."""

import dataclasses
import logging
import os
import time
from typing import Protocol

from kvcache.cache import KVCache
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig, EngineInfo
from scheduler.llama import MAX_SEQUENCE_IDS, Context, Model, num_gpu_layers
from scheduler.messages import Cancel, Inspect, Message, Output, Report, Stop, Submit
from scheduler.pacing import Pacer
from scheduler.plan import Runner, StepError
from scheduler.runner import LlamaRunner
from scheduler.scheduler import Scheduler
from scheduler.sizing import choose

_log = logging.getLogger("cortex.engine")


class Wire(Protocol):
    """What the engine needs of scheduler.link."""

    def receive(self, *, wait: bool) -> list[Message]: ...
    def send(self, message: Message) -> None: ...
    def send_outputs(self, outputs: list[Output]) -> None: ...


class Engine:
    """Steps while there is work, waits for messages while there is none."""

    def __init__(self, scheduler: Scheduler, runner: Runner, wire: Wire) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._wire = wire
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop."""
        while not self._stopping:
            if not self._scheduler.has_work:
                self._scheduler.cache.check_integrity()
            for message in self._wire.receive(wait=not self._scheduler.has_work):
                self._handle(message)
            if self._scheduler.has_work and not self._stopping:
                self._wire.send_outputs(self._step())

    def _step(self) -> list[Output]:
        plan = self._scheduler.plan()
        try:
            result = self._runner.run(plan)
        except StepError as error:
            _log.error("step failed: %s; it was %s", error, plan)
            return self._scheduler.rollback(plan)
        return self._scheduler.commit(plan, result)

    def _handle(self, message: Message) -> None:
        match message:
            case Submit():
                refusal = self._scheduler.submit(message)
                if refusal is not None:
                    self._wire.send_outputs([refusal])
            case Cancel(request_id):
                self._scheduler.cancel(request_id)
            case Inspect():
                self._wire.send(
                    Report(
                        dataclasses.asdict(self._scheduler.statistics()),
                        dataclasses.asdict(self._scheduler.cache.statistics()),
                    )
                )
            case Stop():
                self._stopping = True
            case _:
                _log.error("not a message for an engine: %s", type(message).__name__)


def load(config: EngineConfig) -> tuple[Scheduler, LlamaRunner, EngineInfo]:
    """The model of a configuration, warmed up and ready to step. Raises ModelError with a line for the user."""
    started = time.monotonic()
    model = Model(config.model_path, config.gpu_layers)
    sizes = choose(
        config,
        trained_context=model.trained_context,
        model_bytes=model.num_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(config.kv_type),
        on_gpu=num_gpu_layers(config.gpu_layers, model.num_layers) > 0,
    )
    context = Context(
        model,
        config,
        kv_tokens=sizes.kv_tokens,
        num_ids=MAX_SEQUENCE_IDS if model.shares_prefixes else sizes.max_seqs,
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
    )
    runner = LlamaRunner(context, model.eog_tokens)
    pacer = Pacer(runner.warm_up())
    cache = KVCache(
        context,
        sizes.kv_tokens // PAGE_TOKENS,
        MAX_SEQUENCE_IDS if model.shares_prefixes else sizes.max_seqs,
        sharing=model.shares_prefixes,
    )
    scheduler = Scheduler(
        cache,
        pacer,
        max_seqs=sizes.max_seqs,
        token_budget=min(sizes.batch_tokens, context.batch_tokens),
        ctx_len=sizes.ctx_len,
        eog_tokens=model.eog_tokens,
    )
    info = EngineInfo(
        pid=os.getpid(),
        description=model.description,
        ctx_len=sizes.ctx_len,
        max_seqs=sizes.max_seqs,
        kv_tokens=sizes.kv_tokens,
        kv_bytes=sizes.kv_tokens * model.kv_bytes_per_token(config.kv_type),
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        gpu_layers=num_gpu_layers(config.gpu_layers, model.num_layers),
        load_seconds=round(time.monotonic() - started, 3),
    )
    return scheduler, runner, info
