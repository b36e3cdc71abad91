"""The stations of each request, and its observers: metrics, logs, traces, usage."""

import logging
from bisect import bisect_left
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from scheduler.messages import Output

_log = logging.getLogger("cortex.api")

Finish = Literal["", "stop", "length", "error", "timeout", "cancelled", "refused"]
"""How a request ended; empty while it is open. `cancelled`: its client left. `refused`: nothing was computed."""
CLIENT_LEFT: Final = 499
"""The status of a request whose client left before its answer began, as nginx has it."""
GAP_BOUNDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Upper bounds in seconds of the buckets in which gaps between tokens are counted; vLLM's."""


@dataclass(eq=False, slots=True)
class RequestRecord:
    """The stations of one request. Times are on trio's clock, in seconds; None for a station that it has not reached.

    It is filled while the request runs. So an observer may also read it before the request has ended.
    """

    request_id: str = ""
    operation: str = ""
    """The operation's name in the table of operations; empty if the URL has none."""
    tenant: str = ""
    """The tenant's name; empty before it is known."""
    model: str = ""
    """The model's own name; empty if the request names no model that is served."""
    traceparent: str = ""
    """The client's trace, as the W3C header of this name; empty without one."""
    tracestate: str = ""
    """The same of the second W3C header."""
    arrived_at: float = 0.0
    """When its head arrived, in seconds since the epoch."""
    arrival: float = 0.0
    """The same time on trio's clock."""
    submitted: float | None = None
    """When its sequences or texts were sent to the engine."""
    queue_seconds: float = 0.0
    """How long its first sequence waited in the engine. Known with the first output."""
    first_output: float | None = None
    """When the first token of an answer arrived. Embeddings have none."""
    last_output: float | None = None
    """When the last token, or the last embedding, arrived."""
    ended: float | None = None
    num_sequences: int = 0
    """Answers that are generated for it, or texts that are embedded."""
    prompt_tokens: int = 0
    """As in the answer's usage: a prompt with several answers counts once."""
    cached_tokens: int = 0
    """The prompt tokens that were found in the cache."""
    answer_tokens: int = 0
    accepted_drafts: int = 0
    """Drafted tokens that steps verified and accepted."""
    rejected_drafts: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS) + 1))
    """Number of gaps between two tokens of an answer, by GAP_BOUNDS; the last number has no bound."""
    gap_seconds: float = 0.0
    """The sum of all gaps."""
    status: int = 0
    """The status of the HTTP response; 0 before it is known. A stream that fails later keeps its 200."""
    error: str = ""
    """The code of the error, if there was one."""
    finish: Finish = ""
    outlives_response: bool = False
    """Whether it may end after its response, when its client has left. Its stream then reports the end."""
    _per_prompt: int = 1
    _last: dict[int, float] = field(default_factory=dict)
    """When the last token of each sequence arrived."""

    def prepared(self, *, prompt_tokens: int, num_sequences: int, num_prompts: int = 1) -> None:
        """Record what it asks for. Its sequences are grouped by prompt."""
        self.prompt_tokens, self.num_sequences = prompt_tokens, num_sequences
        self._per_prompt = max(1, num_sequences // num_prompts)

    def received(self, index: int, output: Output, num_tokens: int, now: float) -> None:
        """Record an output of a sequence. `num_tokens`: how many of its tokens belong to the answer.

        This runs for each output of a stream, so it must stay cheap.
        """
        if not output.tokens:
            return
        before = self._last.get(index)
        self._last[index] = self.last_output = now
        self.answer_tokens += num_tokens
        self.accepted_drafts += output.accepted_drafts
        self.rejected_drafts += output.rejected_drafts
        if before is not None:  # tokens that arrive together share the gap before them
            count = len(output.tokens)
            self.gaps[bisect_left(GAP_BOUNDS, (now - before) / count)] += count
            self.gap_seconds += now - before
            return
        if self.first_output is None:
            self.first_output, self.queue_seconds = now, output.queue_seconds
        if index % self._per_prompt == 0:
            self.cached_tokens += output.cached_tokens

    def close(self, now: float) -> None:
        """Record the end. What has not been recorded before follows from the stations that the request has reached."""
        self.ended = now
        if not self.status:
            self.status = CLIENT_LEFT
        if not self.finish:
            self.finish = self._finish()

    def _finish(self) -> Finish:
        if self.status == CLIENT_LEFT:
            return "cancelled"
        if self.status >= 400:
            return finish_of(self.status)
        return "cancelled" if self.num_sequences else "stop"  # an answer that is complete has its finish already

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the arrival to the first token; None without one."""
        return None if self.first_output is None else self.first_output - self.arrival


def finish_of(status: int) -> Finish:
    """How a request ended that got an error with this status."""
    if status in (408, 504):
        return "timeout"
    return "error" if status >= 500 and status != 503 else "refused"


class Observer(Protocol):
    """Gets each request. Its methods must not wait, and must be quick: all streams wait for them."""

    def began(self, record: RequestRecord) -> None:
        """The request has arrived. Only its id, operation and arrival are known."""

    def ended(self, record: RequestRecord) -> None:
        """The request has ended, for any reason. Called once for each `began`. The record does not change any more."""


class Observers:
    """All observers of a server. An exception in one of them hurts neither a request nor the other observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)
        self._open: set[RequestRecord] = set()

    def add(self, observer: Observer) -> None:
        """Add an observer. Must be called before the first request."""
        self._observers.append(observer)

    def began(self, record: RequestRecord) -> None:
        self._open.add(record)
        for observer in self._observers:
            try:
                observer.began(record)
            except Exception:
                _log.exception("%s failed at the beginning of a request", type(observer).__name__)

    def ended(self, record: RequestRecord, now: float) -> None:
        """End a request. Does nothing if it has ended or never began."""
        if record not in self._open:
            return
        self._open.discard(record)
        record.close(now)
        for observer in self._observers:
            try:
                observer.ended(record)
            except Exception:
                _log.exception("%s failed at the end of a request", type(observer).__name__)


CURRENT: Final[ContextVar[RequestRecord | None]] = ContextVar("request", default=None)
"""The record of the request that this task serves."""
