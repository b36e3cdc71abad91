"""The engine's main loop: handles messages and runs steps."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, Protocol

from kvcache.statistics import CacheStatistics
from scheduler.crash_record import CrashRecord
from scheduler.elastic import POLL_SECONDS, Elastic, ElasticStatistics
from scheduler.embedder import Embedder, EmbedderStatistics
from scheduler.failures import RequestError, attempt, describe
from scheduler.grammar import Compiled, Grammar, GrammarCompiler
from scheduler.live import Live
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Inspect,
    Message,
    Output,
    Queue,
    Report,
    Snapshot,
    Stop,
    Submit,
    Watch,
)
from scheduler.outbox import Outbox
from scheduler.plan import Runner, StepError, attempt_step
from scheduler.scheduler import Scheduler
from scheduler.statistics import SchedulerStatistics

_log = logging.getLogger("cortex.engine")

CLOSE_SECONDS: Final = 3.0
"""Time limit for writing pages to the disk when the engine stops."""
QUEUE_SECONDS: Final = 1.0
BLIND: Final = "The engine failed to report what it does. Its log has the reason."
"""Without the exception's text: it may name tenants that a watcher must not see."""

P = ParamSpec("P")


class Wire(Protocol):
    """The part of scheduler.link.Link that the engine uses."""

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]: ...
    def post(self, compiled: Compiled) -> None: ...
    def send(self, message: Message) -> None: ...
    def send_outputs(self, outputs: list[Output]) -> None: ...


class Engine:
    """Runs steps while there is work, and waits for messages otherwise. Generation and embeddings take turns."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        compiler: GrammarCompiler,
        wire: Wire,
        embedder: Embedder | None = None,
        record: CrashRecord | None = None,
        elastic: Elastic | None = None,
        outbox: Outbox | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`record` gets the requests that are being computed. `elastic` is None if the KV memory has a fixed size.

        Without an `outbox`, each token is sent at once.
        """
        self._scheduler = scheduler
        self._runner = runner
        self._compiler = compiler
        self._wire = wire
        self._embedder = embedder
        self._record = record or CrashRecord()
        self._elastic = elastic
        self._outbox = outbox or Outbox(0.0)
        self._clock = clock
        self._is_stuck = False
        """Whether no sequence could go on in the last step, because the KV memory must grow first."""
        self._is_unchecked = False
        """Whether steps have run since the last check of the cache. While nothing runs, one check is enough."""
        self._compiling: set[int] = set()
        """Requests whose grammars are being compiled. They are not in the scheduler yet."""
        self._stopping = False
        self._live: Live | None = None
        """Records what the engine does while somebody watches."""
        self._queue_reported = -math.inf
        """When the last Queue was sent, on `clock`."""

    def run(self) -> None:
        """Serve requests until a Stop message."""
        while not self._stopping:
            if self._is_unchecked and not self._scheduler.has_work:
                self._scheduler.cache.check_integrity()
                self._is_unchecked = False
            self._report_queue()
            for message in self._receive():
                self._handle(message)
            if self._elastic is not None and not self._stopping:
                if self._elastic.state != "steady":
                    self._send(self._outbox.flush())  # a move takes longer than a step
                self._elastic.step()
            if self._scheduler.has_work and not self._stopping:
                self._send(self._step())
                self._record.computing(())
            if self._has_texts and not self._stopping:
                self._send(self._outbox.flush())
                self._read_texts()
                self._record.computing(())
            if self._live is not None:
                self._show(self._live.look)
        self._send(self._outbox.flush())
        self._scheduler.cache.close(CLOSE_SECONDS)

    def _send(self, outputs: list[Output]) -> None:
        if outputs:
            self._wire.send_outputs(outputs)

    def _receive(self) -> list[Message | Compiled]:
        is_idle = not (self._scheduler.has_work or self._has_texts)
        if is_idle:
            return self._wire.receive(wait=True, seconds=self._patience)
        if self._elastic is None:
            return self._wire.receive(wait=False)
        return self._wire.receive(wait=self._is_stuck and not self._has_texts, seconds=POLL_SECONDS)

    @property
    def _patience(self) -> float | None:
        """Seconds to wait for a message while there is no work; None for no limit."""
        parts = [part.patience for part in (self._elastic, self._live) if part is not None]
        return min((seconds for seconds in parts if seconds is not None), default=None)

    def _report_queue(self) -> None:
        """Send the order of the waiting requests to the API, at most once in QUEUE_SECONDS."""
        now = self._clock()
        if now - self._queue_reported >= QUEUE_SECONDS and (request_ids := self._scheduler.queue()):
            self._queue_reported = now
            self._wire.send(Queue(request_ids))

    @property
    def _has_texts(self) -> bool:
        return self._embedder is not None and self._embedder.has_work

    def _step(self) -> list[Output]:
        self._is_unchecked = True
        plan = self._scheduler.plan()
        self._is_stuck = not plan.chunks
        if self._is_stuck:
            return self._outbox.flush()
        self._send(self._outbox.before(plan))
        self._record.computing([chunk.sequence.request_id for chunk in plan.chunks])
        result = attempt_step(self._runner.run, plan)
        if isinstance(result, StepError):
            return self._outbox.add(self._scheduler.rollback(plan, result), math.inf) + self._outbox.flush()
        outputs = self._outbox.add(self._scheduler.commit(plan, result), result.seconds)
        if self._live is not None:
            self._show(self._live.computed, plan, result.seconds)
        return outputs

    def _read_texts(self) -> None:
        assert self._embedder is not None, "_has_texts is true"
        seconds = self._scheduler.spare_seconds
        if seconds is not None:
            for embedded in self._embedder.step(seconds, self._record.computing):
                self._wire.send(embedded)

    def _handle(self, message: Message | Compiled) -> None:
        match message:
            case Submit() if message.grammar:
                self._compiling.add(message.request_id)
                compiled = self._compiler.compile(message, self._wire.post, self._record.compiling)
                if message.suspect:
                    compiled.result()  # nothing else is computed meanwhile, so a crash is this request's own
            case Submit():
                self._submit(message)
            case Compiled(submit, grammar):
                if submit.request_id in self._compiling:
                    self._compiling.remove(submit.request_id)
                    self._begin(submit, grammar)
            case Embed():
                self._embed(message)
            case Cancel(request_id):
                self._compiling.discard(request_id)
                self._scheduler.cancel(request_id)
                self._outbox.forget(request_id)
                if self._embedder is not None:
                    self._embedder.cancel(request_id)
            case Inspect():
                self._wire.send(report(self._scheduler, self._embedder, self._elastic))
            case Watch(on):
                self._watch(on=on)
            case Stop():
                self._stopping = True
            case _:
                _log.error("unexpected message: %s", type(message).__name__)

    def _watch(self, *, on: bool) -> None:
        self._live = Live(self._scheduler, self._embedder, self._elastic, self._wire.send, self._clock) if on else None
        if self._embedder is not None:
            self._embedder.on_batch = self._show_texts if on else None

    def _show_texts(self, texts: Iterable[tuple[str, int]], seconds: float) -> None:
        if self._live is not None:
            self._show(self._live.read, texts, seconds)

    def _show(self, show: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function for those who watch. An exception only ends the watching, until the next Watch."""
        try:
            show(*args, **kwargs)
        except Exception as error:
            _log.error("watching ends: %s", describe(error))
            self._watch(on=False)
            self._wire.send(Snapshot([], {}, {}, {}, {}, BLIND))

    def _begin(self, submit: Submit, grammar: Grammar | RequestError) -> None:
        """Report at once whether the grammar is accepted, and submit the request if so."""
        if isinstance(grammar, RequestError):
            self._wire.send_outputs([_failed(submit, grammar)])
        else:
            if not submit.answer:
                self._wire.send_outputs([Output(submit.request_id)])
            self._submit(submit, grammar)

    def _submit(self, submit: Submit, grammar: Grammar | None = None) -> None:
        refusal = attempt(self._scheduler.submit, submit, grammar)
        if isinstance(refusal, RequestError):
            refusal = _failed(submit, refusal)
        if refusal is not None:
            self._wire.send_outputs([refusal])

    def _embed(self, embed: Embed) -> None:
        refusal: Embedded | RequestError | None
        if self._embedder is None:
            refusal = RequestError("this model makes no embeddings of texts")
        else:
            refusal = attempt(self._embedder.submit, embed)
        if isinstance(refusal, RequestError):
            refusal = Embedded(embed.request_id, error=str(refusal))
        if refusal is not None:
            self._wire.send(refusal)


def report(scheduler: Scheduler, embedder: Embedder | None = None, elastic: Elastic | None = None) -> Report:
    """The statistics of an engine."""
    embeddings = _plain(embedder.statistics()) if embedder is not None else {}
    memory = _plain(elastic.statistics()) if elastic is not None else {}
    return Report(_plain(scheduler.statistics()), _plain(scheduler.cache.statistics()), embeddings, memory)


def _plain(
    statistics: SchedulerStatistics | CacheStatistics | EmbedderStatistics | ElasticStatistics,
) -> dict[str, Any]:
    """The fields by name. Unlike `asdict` it copies nothing, which took most of the time with many tenants."""
    return {item.name: getattr(statistics, item.name) for item in dataclasses.fields(statistics)}


def _failed(submit: Submit, failure: RequestError) -> Output:
    return Output(submit.request_id, finish_reason=failure.finish_reason, error=str(failure))
