"""The names, help texts and labels of all metrics. Names with `vllm:` mean what they mean in vLLM."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from api.serving.metrics.engines import EngineTotals
from api.serving.metrics.histogram import Histogram
from api.serving.metrics.requests import ModelTotals, RequestTotals, TenantLabels, TenantTotals
from api.serving.state import STATUSES, Status
from api.tenants.tenant import Priority
from scheduler.messages import Report

MODEL: Final = ("model_name",)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What is known of one model and its engine."""

    name: str
    status: Status
    report: Report | None
    """The newest statistics; None without an engine."""
    report_age: float
    """Seconds since they arrived."""
    num_active: int
    """Sequences and embedding requests that have not ended."""
    restarts: float
    totals: EngineTotals

    @property
    def running(self) -> int:
        return self.report.scheduler["running"] + self.report.embedder.get("requests", 0) if self.report else 0

    @property
    def waiting(self) -> int:
        """Without an engine, everything waits."""
        return self.report.scheduler["waiting"] if self.report else self.num_active

    @property
    def kv_usage(self) -> float:
        """The part of the KV cache at its largest that running sequences hold. Idle cached pages are free for others.

        It grows before it is full, so a part of its present size would make routers leave out a server with room.
        """
        return self.held_tokens / max(1.0, self.memory("kv_max"))

    @property
    def held_tokens(self) -> float:
        """Tokens of the KV cache that running sequences hold."""
        return self.cache("held_pages") * self.cache("page_tokens")

    def cache(self, name: str) -> float:
        """A current number of the cache; 0 without an engine."""
        return float(self.report.cache.get(name, 0)) if self.report else 0.0

    def memory(self, name: str) -> float:
        """A number of the size of the KV memory. If this is fixed, the size at most is the present one."""
        present = self.cache("pages") * self.cache("page_tokens") if name in {"kv_tokens", "kv_max"} else 0.0
        return float(self.report.memory.get(name, present)) if self.report else 0.0


_GAUGES: Final[tuple[tuple[str, str, Callable[[EngineState], float]], ...]] = (
    ("vllm:num_requests_running", "Sequences that run, and requests for embeddings.", lambda each: each.running),
    ("vllm:num_requests_waiting", "Sequences that wait.", lambda each: each.waiting),
    (
        "vllm:kv_cache_usage_perc",
        "Part of the KV cache at its largest that running sequences hold, 0 to 1. Idle cached pages do not count.",
        lambda each: each.kv_usage,
    ),
    ("cortex_kv_tokens", "Present size of the KV cache in tokens.", lambda each: each.memory("kv_tokens")),
    ("cortex_kv_max_tokens", "Size of the KV cache in tokens at most.", lambda each: each.memory("kv_max")),
    (
        "cortex_kv_move_seconds",
        "Duration of the last change of the KV cache's size, in which no step ran.",
        lambda each: each.memory("move_seconds"),
    ),
    ("cortex_report_age_seconds", "Age of the engine's numbers. It reports between two steps.", lambda e: e.report_age),
)
_COUNTERS: Final[tuple[tuple[str, str, Callable[[EngineTotals], float]], ...]] = (
    (
        "vllm:prefix_cache_queries",
        "Prompt tokens that sequences needed: found in the cache or computed.",
        lambda totals: totals["hit_tokens"] + totals["prefill_tokens"],
    ),
    ("vllm:prefix_cache_hits", "Prompt tokens that were found in the cache.", lambda totals: totals["hit_tokens"]),
    ("vllm:num_preemptions", "Sequences that gave way to others.", lambda totals: totals["preemptions"]),
    ("vllm:spec_decode_num_drafts", "Drafts that were verified.", lambda totals: totals["num_drafts"]),
    (
        "vllm:spec_decode_num_draft_tokens",
        "Drafted tokens that were verified.",
        lambda totals: totals["draft_tokens"],
    ),
    (
        "vllm:spec_decode_num_accepted_tokens",
        "Drafted tokens that became part of an answer.",
        lambda totals: totals["accepted_draft_tokens"],
    ),
    ("cortex_steps", "Steps of the engine.", lambda totals: totals["steps"]),
    ("cortex_step_seconds", "Time of all steps, in seconds.", lambda totals: totals["step_seconds"]),
    ("cortex_failed_steps", "Steps that failed and were rolled back.", lambda totals: totals["failed_steps"]),
    ("cortex_prefill_tokens", "Prompt tokens that steps computed.", lambda totals: totals["prefill_tokens"]),
    ("cortex_decode_tokens", "Answer tokens that steps computed.", lambda totals: totals["decode_tokens"]),
    (
        "cortex_tier_loaded_tokens",
        "Prompt tokens that were loaded from host memory or from the disk.",
        lambda totals: totals["loaded_tokens"],
    ),
    ("cortex_evicted_pages", "KV pages that were evicted.", lambda totals: totals["evicted_pages"]),
    ("cortex_kv_grows", "Times that the KV cache became larger.", lambda totals: totals["grows"]),
    ("cortex_kv_shrinks", "Times that the KV cache became smaller.", lambda totals: totals["shrinks"]),
    (
        "cortex_kv_failed_openings",
        "Times that llama.cpp could not open KV memory of another size.",
        lambda totals: totals["failed_openings"],
    ),
    ("cortex_merged_pages", "KV pages of which an equal page existed.", lambda totals: totals["merged_pages"]),
)
_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[ModelTotals], Histogram]], ...]] = (
    (
        "vllm:time_to_first_token_seconds",
        "Time from the arrival of a request to its first token.",
        lambda totals: totals.first_token,
    ),
    ("vllm:inter_token_latency_seconds", "Time between two tokens of an answer.", lambda totals: totals.gaps),
    (
        "vllm:request_queue_time_seconds",
        "Time that the first sequence of a request waited in the engine.",
        lambda totals: totals.queue,
    ),
    (
        "vllm:e2e_request_latency_seconds",
        "Time from the arrival of a request to the end of its answer.",
        lambda totals: totals.whole,
    ),
)
_MODEL_TOKENS: Final[tuple[tuple[str, str, Callable[[ModelTotals], int]], ...]] = (
    ("vllm:prompt_tokens", "Prompt tokens, those in the cache included.", lambda totals: totals.prompt_tokens),
    ("vllm:generation_tokens", "Answer tokens.", lambda totals: totals.answer_tokens),
)
_TENANT_TOKENS: Final[tuple[tuple[str, str, Callable[[TenantTotals], int]], ...]] = (
    ("cortex_tenant_prompt_tokens", "Prompt tokens, those in the cache included.", lambda t: t.prompt_tokens),
    ("cortex_tenant_cached_tokens", "Prompt tokens that were found in the cache.", lambda t: t.cached_tokens),
    ("cortex_tenant_answer_tokens", "Answer tokens.", lambda t: t.answer_tokens),
)


def of_engines(states: Sequence[EngineState], labels: TenantLabels) -> list[Metric]:
    """The metrics of models, engines, KV caches and tiers."""
    metrics: list[Metric] = []
    for name, text, number in _GAUGES:
        metrics.append(_gauge(name, text, MODEL, (((each.name,), number(each)) for each in states)))
    for name, text, total in _COUNTERS:
        metrics.append(_counter(name, text, MODEL, (((each.name,), total(each.totals)) for each in states)))
    accepted = (
        ((each.name, str(position)), total)
        for each in states
        for position, total in enumerate(each.totals.accepted_per_position)
    )
    text = "Accepted drafted tokens by their position in the draft."
    metrics.append(_counter("vllm:spec_decode_num_accepted_tokens_per_pos", text, (*MODEL, "position"), accepted))
    drafted = (((each.name, *key), total) for each in states for key, total in each.totals.drafted.items())
    text = "Drafted tokens that were verified, by what drafted them and by the result."
    metrics.append(_counter("cortex_draft_tokens", text, (*MODEL, "source", "result"), drafted))
    restarts = (((each.name,), each.restarts) for each in states)
    metrics.append(_counter("cortex_engine_restarts", "Engines that replaced another one.", MODEL, restarts))
    status = (((e.name, status), float(e.status == status)) for e in states for status in STATUSES)
    metrics.append(_gauge("cortex_model_status", "1 for the status of the model.", (*MODEL, "status"), status))
    pages = (((e.name, use), e.cache(f"{use}_pages")) for e in states for use in ("held", "cached", "free"))
    metrics.append(_gauge("cortex_kv_pages", "Pages of the KV cache by their use.", (*MODEL, "use"), pages))
    for unit, text in (("bytes", "Bytes of KV in a tier."), ("pages", "Pages, or sequences, of KV in a tier.")):
        tiers = (((e.name, tier), e.cache(f"{tier}_{unit}")) for e in states for tier in ("host", "disk"))
        metrics.append(_gauge(f"cortex_tier_{unit}", text, (*MODEL, "tier"), tiers))
    return metrics + _of_tenants_now(states, labels)


def _of_tenants_now(states: Sequence[EngineState], labels: TenantLabels) -> list[Metric]:
    """What the schedulers report of each tenant and class. If tenants share a label, the largest service is shown."""
    running: Counter[tuple[str, ...]] = Counter()
    waiting: Counter[tuple[str, ...]] = Counter()
    service: dict[tuple[str, ...], float] = {}
    for state in states:
        for account in state.report.scheduler.get("tenants", ()) if state.report else ():
            key = state.name, labels.of(account["tenant"]), Priority(account["priority"]).name.lower()
            running[key] += account["running"]
            waiting[key] += account["waiting"]
            service[key] = max(service.get(key, 0.0), account["service"])
    keys = (*MODEL, "tenant", "priority")
    return [
        _gauge("cortex_tenant_running", "Sequences of the tenant that run.", keys, running.items()),
        _gauge("cortex_tenant_waiting", "Sequences of the tenant that wait.", keys, waiting.items()),
        _gauge("cortex_tenant_service", "Cost of all work for the tenant, by its weight.", keys, service.items()),
    ]


def of_requests(totals: RequestTotals) -> list[Metric]:
    """The metrics of requests, by model, tenant and operation."""
    models, tenants = totals.models, totals.tenants
    metrics: list[Metric] = []
    for name, text, histogram in _HISTOGRAMS:
        family = HistogramMetricFamily(name, text, labels=MODEL)
        for model, each in models.items():
            shown = histogram(each)
            family.add_metric((model,), shown.buckets, shown.sum)
        metrics.append(family)
    for name, text, tokens in _MODEL_TOKENS:
        metrics.append(_counter(name, text, MODEL, (((model,), tokens(each)) for model, each in models.items())))
    finished = (((model, reason), count) for model, e in models.items() for reason, count in e.finished.items())
    text = "Requests by how they ended. Refused ones are not among them."
    metrics.append(_counter("vllm:request_success", text, (*MODEL, "finished_reason"), finished))
    ended = (((name, finish), count) for name, e in tenants.items() for finish, count in e.finished.items())
    text = "Requests of the tenant by how they ended."
    metrics.append(_counter("cortex_tenant_requests", text, ("tenant", "finish"), ended))
    for name, text, number in _TENANT_TOKENS:
        metrics.append(_counter(name, text, ("tenant",), (((label,), number(e)) for label, e in tenants.items())))
    responses = (((operation, str(status)), count) for (operation, status), count in totals.responses.items())
    text = "Requests by operation and HTTP status; 499 if the client left."
    metrics.append(_counter("cortex_http_requests", text, ("operation", "status"), responses))
    return metrics


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """prometheus_client adds `_total` to the name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family
