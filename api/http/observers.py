"""The observers that a server has because of its flags and its environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from api.flags import ServerOptions
from api.serving.observer import Observers
from api.serving.request_log import RequestLog


class TracingError(Exception):
    """Traces are wanted, but cannot be made. The message is one line for the user."""


@contextmanager
def observing(options: ServerOptions) -> Iterator[Observers]:
    """The observers of a server. At the end of the block, the last traces are sent. Raises TracingError."""
    observers = Observers()
    if options.log_requests:
        observers.add(RequestLog())
    if not wants_traces(os.environ):
        yield observers
        return
    try:
        from api.serving.tracing import RequestTracer, exporting_provider
    except ImportError as error:
        variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
        message = (
            f"{variable} asks for traces, which need the extra 'otel': pip install 'cortex-server[otel]' ({error})"
        )
        raise TracingError(message) from error
    provider = exporting_provider()
    observers.add(RequestTracer(provider))
    try:
        yield observers
    finally:
        provider.shutdown()


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's standard variables ask for traces."""
    has_endpoint = any(
        environment.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return has_endpoint and not is_off and environment.get("OTEL_TRACES_EXPORTER") != "none"
