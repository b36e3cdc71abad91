"""Operations of probes, routers, scrapers and people who watch the server."""

from typing import Final

from api.http.operation import Operation, Scope
from api.protocols.live import answer as live
from api.protocols.live.types import LiveEvent
from api.protocols.management import health, metrics, version
from api.protocols.management.request import LoadsQuery
from api.protocols.management.types import Health, Loads, Readiness, Ready

WATCHING: Final = (
    Operation(
        "health",
        "GET",
        "/healthz",
        "The state of the server and its models",
        health.health,
        Health,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "readiness",
        "GET",
        "/health",
        "Whether the server is ready, for load balancers and routers",
        health.readiness,
        Readiness,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "ready",
        "GET",
        "/readyz",
        "Whether a request to the first model would be answered now",
        health.ready,
        Ready,
        unhealthy=503,
        scope=Scope.PUBLIC,
    ),
    Operation(
        "loads",
        "GET",
        "/v1/loads",
        "The load of each model, for routers",
        metrics.loads,
        Loads,
        query=LoadsQuery,
        errors=(400,),
        scope=Scope.PUBLIC,
    ),
    Operation(
        "live",
        "GET",
        "/v1/live",
        "What the server does right now: steps, pages, queue, latency, memory",
        live.watch,
        chunk=LiveEvent,
        is_endless=True,
        errors=(503,),
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "What the server counts, in Prometheus' text format",
        metrics.metrics,
        scope=Scope.METRICS,
    ),
    Operation(
        "version",
        "GET",
        "/version",
        "The versions of the server and its llama.cpp, and how llama.cpp was built",
        version.version,
        version.Version,
        scope=Scope.PUBLIC,
    ),
)
