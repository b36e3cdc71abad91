"""GET /healthz: the state of the server and of its models."""

import os
import time

import orjson

from api import package_version
from api.protocols.call import Call, Reply


async def health(call: Call[None]) -> Reply:
    body = await call.server.fleet.health() | {
        "pid": os.getpid(),
        "uptime_seconds": round(time.monotonic() - call.server.started, 3),
        "version": package_version(),
    }
    if not call.is_local:  # paths of files are private
        body["models"] = [model | {"path": None} for model in body["models"]]
    return Reply(orjson.dumps(body), 200 if body["status"] == "ok" else 503)
