"""Opens the publisher of KV events, if the options ask for one."""

import logging
from typing import TYPE_CHECKING

from scheduler.config import EngineConfig
from scheduler.errors import ModelError

if TYPE_CHECKING:
    from scheduler.kv_events.publisher import Publisher

_log = logging.getLogger("cortex.engine")


def open_publisher(config: EngineConfig) -> "Publisher | None":
    """Returns the publisher, not started yet; None if there is none. Raises ModelError with one line for the user."""
    if not config.kv_events:
        for value, option in (
            (config.kv_events_replay, "--kv-events-replay"),
            (config.kv_events_topic, "--kv-events-topic"),
        ):
            if value:
                raise ModelError(f"{option} needs --kv-events")
        return None
    try:
        import zmq

        from scheduler.kv_events.publisher import Publisher
    except ImportError as error:
        extra = "--kv-events needs the extra 'events': pip install 'cortex-server[events]'"
        raise ModelError(f"{extra} ({error})") from error
    try:
        publisher = Publisher(config.kv_events, config.kv_events_replay, config.kv_events_topic)
    except zmq.ZMQError as error:
        hint = "; each model needs endpoints of its own" if error.errno == zmq.EADDRINUSE else ""
        raise ModelError(f"--kv-events: an endpoint cannot be opened: {error.strerror}{hint}") from error
    _log.info("publishes KV events at %s", " and answers requests for past ones at ".join(publisher.endpoints))
    return publisher
