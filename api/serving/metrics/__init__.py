"""The numbers that GET /metrics shows: of requests, of tenants and of engines."""

from api.serving.metrics.families import EngineState
from api.serving.metrics.metrics import CONTENT_TYPE, Metrics

__all__ = ["CONTENT_TYPE", "EngineState", "Metrics"]
