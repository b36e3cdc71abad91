"""Counts requests by model, by tenant and by operation."""

from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final

from api.serving.metrics.histogram import Histogram
from api.serving.observer import GAP_BOUNDS, Finish, RequestRecord
from api.tenants.tenant import KEYLESS, OTHERS, is_keyless

START_BOUNDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""Buckets of the time to the first token; vLLM's."""
WHOLE_BOUNDS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Buckets of whole requests and of waiting; vLLM's."""
FINISHED_REASONS: Final[dict[Finish, str]] = {
    "stop": "stop",
    "length": "length",
    "error": "error",
    "cancelled": "abort",
    "timeout": "abort",
}
"""vLLM's words for how a request ended. It does not count refused requests."""
MAX_TENANTS: Final = 100
"""Tenants that have metrics under their own names. All further ones are counted together."""


@dataclass(slots=True)
class ModelTotals:
    """The totals of one model."""

    first_token: Histogram = field(default_factory=lambda: Histogram(START_BOUNDS))
    gaps: Histogram = field(default_factory=lambda: Histogram(GAP_BOUNDS))
    queue: Histogram = field(default_factory=lambda: Histogram(WHOLE_BOUNDS))
    whole: Histogram = field(default_factory=lambda: Histogram(WHOLE_BOUNDS))
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    """By vLLM's finished reason."""

    def add(self, record: RequestRecord) -> None:
        """Add what a request has done so far."""
        if (waited := record.time_to_first_token) is not None:
            self.first_token.observe(waited)
            self.queue.observe(record.queue_seconds)
            self.gaps.add(record.gaps, record.gap_seconds)
        if record.last_output is not None:
            self.prompt_tokens += record.prompt_tokens
            self.answer_tokens += record.answer_tokens
        reason = FINISHED_REASONS.get(record.finish)
        if record.ended is not None and record.submitted is not None and reason is not None:
            self.finished[reason] += 1
            self.whole.observe(record.ended - record.arrival)


@dataclass(slots=True)
class TenantTotals:
    """The totals of one tenant, or of several that share a label."""

    finished: Counter[Finish] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0

    def add(self, record: RequestRecord) -> None:
        """Add what a request has done so far."""
        if record.last_output is not None:
            self.prompt_tokens += record.prompt_tokens
            self.cached_tokens += record.cached_tokens
            self.answer_tokens += record.answer_tokens
        if record.ended is not None:
            self.finished[record.finish] += 1


class TenantLabels:
    """The labels of tenants in metrics: at most MAX_TENANTS names, KEYLESS and OTHERS."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def of(self, name: str) -> str:
        if is_keyless(name):
            return KEYLESS
        if name not in self._names:
            if len(self._names) >= MAX_TENANTS:
                return OTHERS
            self._names.add(name)
        return name


@dataclass(slots=True)
class RequestTotals:
    """The totals of all requests since the server started."""

    models: defaultdict[str, ModelTotals] = field(default_factory=lambda: defaultdict(ModelTotals))
    tenants: defaultdict[str, TenantTotals] = field(default_factory=lambda: defaultdict(TenantTotals))
    """By label."""
    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By operation and status."""

    def add(self, record: RequestRecord, tenant: str) -> None:
        """Add what a request has done so far. `tenant`: its tenant's label; empty if it is not known."""
        if record.model:
            self.models[record.model].add(record)
        if tenant:
            self.tenants[tenant].add(record)
        if record.ended is not None:
            self.responses[record.operation, record.status] += 1


class RequestMetrics:
    """Adds up all requests, as an observer."""

    def __init__(self, labels: TenantLabels) -> None:
        self._labels = labels
        self._ended = RequestTotals()
        self._open: set[RequestRecord] = set()

    def began(self, record: RequestRecord) -> None:
        self._open.add(record)

    def ended(self, record: RequestRecord) -> None:
        self._open.discard(record)
        self._add(record, self._ended)

    def totals(self) -> RequestTotals:
        """All totals, with what the open requests have done so far."""
        totals = deepcopy(self._ended)
        for record in self._open:
            self._add(record, totals)
        return totals

    def tokens_before_answers(self) -> dict[str, int]:
        """For each model, the prompt tokens of its requests whose first token has not arrived yet."""
        tokens: Counter[str] = Counter()
        for record in self._open:
            if record.submitted is not None and record.last_output is None:
                tokens[record.model] += record.prompt_tokens
        return dict(tokens)

    def _add(self, record: RequestRecord, totals: RequestTotals) -> None:
        totals.add(record, self._labels.of(record.tenant) if record.tenant else "")
