"""The spans of requests."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from api.http.observers import wants_traces
from api.serving.observer import Observers, RequestRecord
from api.serving.tracing import RequestTracer
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output
from tests.api.fakes import MODEL, Server, chat

EPOCH = 1_700_000_000.0
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Spans:
    """Keeps the spans of a tracer."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = RequestTracer(provider)

    @property
    def root(self) -> ReadableSpan:
        [root] = [span for span in self._all if span.kind is SpanKind.SERVER]
        return root

    @property
    def children(self) -> dict[str, tuple[float, float]]:
        """The begin and end of each child by its name, in seconds since EPOCH."""
        children = [span for span in self._all if span is not self.root]
        for child in children:
            assert child.parent is not None
            assert child.parent.span_id == context_of(self.root).span_id
        return {child.name: times(child) for child in children}

    @property
    def _all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def times(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return round(span.start_time / 1e9 - EPOCH, 3), round(span.end_time / 1e9 - EPOCH, 3)


@pytest.fixture
def spans() -> Spans:
    return Spans()


def test_each_station_has_a_span(spans: Spans) -> None:
    record = RequestRecord("r", "messages", "ann", MODEL, TRACEPARENT, arrived_at=EPOCH, arrival=50.0, status=200)
    record.prepared(prompt_tokens=9, num_sequences=1)
    record.submitted = 51.0
    record.received(0, Output(1, [1], queue_seconds=2.0, cached_tokens=4), 1, 55.0)
    record.received(0, Output(1, [1]), 1, 58.0)
    record.finish = "stop"
    record.close(59.0)
    spans.tracer.ended(record)
    assert times(spans.root) == (0.0, 9.0)
    assert spans.children == {"prepare": (0, 1), "queue": (1, 3), "prefill": (3, 5), "decode": (5, 8)}
    assert spans.root.name == "messages"
    assert spans.root.parent is not None
    assert spans.root.parent.is_remote
    assert (f"{spans.root.parent.trace_id:032x}", f"{spans.root.parent.span_id:016x}") == (TRACE, PARENT)
    attributes = dict(spans.root.attributes or {})
    assert attributes["gen_ai.usage.input_tokens"] == 9
    assert attributes["gen_ai.usage.output_tokens"] == 2
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert (attributes["cortex.tenant"], attributes["gen_ai.request.model"]) == ("ann", MODEL)
    assert spans.root.status.status_code is StatusCode.UNSET


def test_embeddings_have_one_station(spans: Spans) -> None:
    record = RequestRecord(operation="embeddings", arrived_at=EPOCH, status=200, submitted=1.0, last_output=2.0)
    record.close(3.0)
    spans.tracer.ended(record)
    assert spans.children == {"prepare": (0, 1), "embed": (1, 2)}


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-00"])
def test_a_failed_request_without_a_valid_trace_begins_one(spans: Spans, traceparent: str) -> None:
    record = RequestRecord(operation="completions", traceparent=traceparent, arrived_at=EPOCH, status=500)
    record.error = "internal_error"
    record.close(1.0)
    spans.tracer.ended(record)
    assert spans.root.parent is None
    assert spans.children == {}
    assert spans.root.status.status_code is StatusCode.ERROR
    assert dict(spans.root.attributes or {})["error.type"] == "internal_error"


async def test_a_server_traces_its_requests(spans: Spans, tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, observers=Observers(spans.tracer))
    server.answers("xylophone")
    await server.post(chat("xylophone"), {"traceparent": TRACEPARENT})
    assert f"{context_of(spans.root).trace_id:032x}" == TRACE
    assert set(spans.children) == {"prepare", "queue", "prefill", "decode"}
    assert "xylophone" not in spans.root.to_json()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_turn_traces_on(environment: dict[str, str], wanted: bool) -> None:
    assert wants_traces(environment) is wanted


CODE = """
import sys
from pathlib import Path
if {blocked}:
    sys.modules["opentelemetry"] = None
from api.flags import ModelOptions, ServerOptions
from api.http.observers import TracingError, observing
from scheduler.config import EngineConfig
options = ServerOptions(ModelOptions("m", Path("m"), EngineConfig("m")))
try:
    with observing(options):
        print(any(name.startswith("opentelemetry") for name in sys.modules))
except TracingError as error:
    print(error)
"""


def run(blocked: bool, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(blocked=blocked)],
        env={**environment, "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_without_the_variables_nothing_is_imported() -> None:
    assert run(False, {}) == ["False"]


def test_the_missing_extra_is_named_in_one_line() -> None:
    [line] = run(True, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in line
    assert "pip install 'cortex-server[otel]'" in line
