"""Everything that is counted of one server, and its text for Prometheus."""

from collections import defaultdict
from typing import Final

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from api.serving.fleet import Fleet
from api.serving.metrics import families
from api.serving.metrics.engines import EngineTotals, GrowingTotal
from api.serving.metrics.families import EngineState
from api.serving.metrics.requests import RequestMetrics, TenantLabels
from api.serving.model import ModelRuntime
from scheduler.messages import Report

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted of one server. Counters go on when an engine is replaced, and when its model is unloaded."""

    def __init__(self) -> None:
        self._labels = TenantLabels()
        self.requests = RequestMetrics(self._labels)
        """An observer. It must get all requests."""
        self._engines: defaultdict[str, EngineTotals] = defaultdict(EngineTotals)
        self._restarts: defaultdict[str, GrowingTotal] = defaultdict(GrowingTotal)

    async def text(self, fleet: Fleet) -> bytes:
        """All metrics in Prometheus' text format."""
        states = await self.engines(fleet)
        metrics = [*families.of_engines(states, self._labels), *families.of_requests(self.requests.totals())]
        return await trio.to_thread.run_sync(written, metrics)

    async def engines(self, fleet: Fleet) -> list[EngineState]:
        """What is known of each model. Asks each engine once, and does not wait for one that is busy."""
        reports = await fleet.reports()
        return [self._state(model, reports.get(model.names[0])) for model in fleet.models]

    def _state(self, model: ModelRuntime, report: Report | None) -> EngineState:
        name, engine = model.names[0], model.service.engine if model.service is not None else None
        if engine is not None and engine.info is not None and report is not None:
            self._engines[name].update(engine.info.pid, report)
        if engine is not None:
            self._restarts[name].update(id(engine), engine.num_restarts)
        totals = self._engines[name]
        return EngineState(
            name=name,
            status=model.status,
            report=report,
            report_age=engine.report_age if engine is not None else 0.0,
            num_active=model.num_active,
            restarts=self._restarts[name].total,
            totals=totals,
        )


def written(metrics: list[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics))
    return generate_latest(registry)


class _Collected:
    """Metrics that are collected already, as prometheus_client wants them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
