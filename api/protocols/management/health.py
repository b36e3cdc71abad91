"""GET /healthz, /health and /readyz: the state of the server and of its models."""

import os
import time
from typing import Any, Final

import orjson

from api import package_version
from api.protocols.call import Call, Reply

HIDDEN: Final[dict[str, None]] = {"path": None}
"""What only the server's owner sees of a model."""
DETAILS: Final[dict[str, None]] = dict.fromkeys(("engine_pid", "kv", "statistics", "statistics_age"))
"""What nobody else sees either if keys are demanded: counters show what others do."""


async def health(call: Call[None]) -> Reply:
    body = await call.server.fleet.health() | {
        "pid": os.getpid() if call.sees_details else None,
        "uptime_seconds": round(time.monotonic() - call.server.started, 3),
        "version": package_version(),
    }
    hidden = HIDDEN if call.sees_details else HIDDEN | DETAILS
    if not call.is_owner:
        body["models"] = [model | hidden for model in body["models"]]
    return _reply(body)


async def readiness(call: Call[None]) -> Reply:
    """The server's status in the form of llama-server. Asks no engine."""
    return _reply({"status": call.server.fleet.status})


async def ready(call: Call[None]) -> Reply:
    """Whether a request to the first model would be answered now. Asks no engine."""
    reason = call.server.fleet.unready_reason or ("queue_full" if call.server.limiter.is_full else None)
    body = {"ready": reason is None, "reason": reason}
    return Reply(orjson.dumps(body), 200 if reason is None else 503)


def _reply(body: dict[str, Any]) -> Reply:
    return Reply(orjson.dumps(body), 200 if body["status"] == "ok" else 503)
