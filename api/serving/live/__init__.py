"""What the server does right now, for people who watch it."""

from api.serving.live.hub import INTERVAL, MAX_FEEDS, MAX_FEEDS_OF_TENANT, Hub, TooManyFeedsError
from api.serving.live.latency import Latencies, Latency
from api.serving.live.scene import ModelScene, Scene

__all__ = [
    "INTERVAL",
    "MAX_FEEDS",
    "MAX_FEEDS_OF_TENANT",
    "Hub",
    "Latencies",
    "Latency",
    "ModelScene",
    "Scene",
    "TooManyFeedsError",
]
