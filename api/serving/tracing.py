"""Traces of requests for OpenTelemetry: one span for a request, with one for each of its stations.

Imported only if traces are wanted, because it needs the extra `otel`.
"""

import os
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.serving.observer import RequestRecord

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_FAILED: Final = ("error", "timeout")


def exporting_provider() -> TracerProvider:
    """Sends spans to where the standard variables of OpenTelemetry say, from a thread of its own."""
    named = "OTEL_SERVICE_NAME" in os.environ or SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create(None if named else {SERVICE_NAME: "cortex"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class RequestTracer:
    """Makes the spans of a request when it has ended, as an observer. So streams do not wait for it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("cortex")

    def began(self, record: RequestRecord) -> None:
        """Makes nothing: spans get their times afterwards."""

    def ended(self, record: RequestRecord) -> None:
        parent = _PROPAGATOR.extract({"traceparent": record.traceparent, "tracestate": record.tracestate})
        span = self._tracer.start_span(
            record.operation,
            parent,
            SpanKind.SERVER,
            _attributes(record),
            start_time=_nanoseconds(record, record.arrival),
        )
        if record.finish in _FAILED:
            span.set_status(Status(StatusCode.ERROR, record.error))
        for name, start, end in _stations(record):
            self._child(span, record, name, start, end)
        span.end(_nanoseconds(record, record.arrival if record.ended is None else record.ended))

    def _child(self, parent: Span, record: RequestRecord, name: str, start: float, end: float) -> None:
        context = set_span_in_context(parent)
        self._tracer.start_span(name, context, start_time=_nanoseconds(record, start)).end(_nanoseconds(record, end))


def _stations(record: RequestRecord) -> list[tuple[str, float, float]]:
    """The names of the stations that the request has left, with their begin and end on trio's clock."""
    if record.submitted is None:
        return []
    stations = [("prepare", record.arrival, record.submitted)]
    first, last = record.first_output, record.last_output
    if first is not None and last is not None:
        admitted = min(record.submitted + record.queue_seconds, first)
        stations += [("queue", record.submitted, admitted), ("prefill", admitted, first), ("decode", first, last)]
    elif last is not None:
        stations.append(("embed", record.submitted, last))
    return stations


def _attributes(record: RequestRecord) -> dict[str, str | int | float | list[str]]:
    """With the names of OpenTelemetry's conventions, where they have some. Never a prompt or an answer."""
    attributes: dict[str, str | int | float | list[str]] = {
        "gen_ai.operation.name": record.operation,
        "http.response.status_code": record.status,
        "cortex.request_id": record.request_id,
        "cortex.finish": record.finish,
    }
    if record.tenant:
        attributes["cortex.tenant"] = record.tenant
    if record.model:
        attributes["gen_ai.request.model"] = record.model
    if record.error:
        attributes["error.type"] = record.error
    if record.submitted is not None:
        attributes |= {
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.usage.output_tokens": record.answer_tokens,
            "cortex.drafts.accepted": record.accepted_drafts,
            "cortex.drafts.rejected": record.rejected_drafts,
            "cortex.sequences": record.num_sequences,
            "cortex.queue_seconds": record.queue_seconds,
        }
    return attributes


def _nanoseconds(record: RequestRecord, time: float) -> int:
    """A time on trio's clock, since the epoch."""
    return int((record.arrived_at + time - record.arrival) * 1e9)
