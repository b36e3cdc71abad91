"""The end of a server: on a signal it refuses new requests, and lets running ones finish."""

import logging
import os
import signal
import threading
from collections.abc import AsyncIterable

import trio

from api.protocols.resumable import ResumableStreams
from api.serving.fleet import Fleet

_log = logging.getLogger("cortex.api")


async def drain_on_signal(
    fleet: Fleet,
    streams: ResumableStreams,
    drained: trio.Event,
    *,
    grace_seconds: float,
    delay_seconds: float,
    exit_seconds: float,
) -> None:
    """On SIGTERM or SIGINT: refuse new requests and wait as `wait_drained`, then end the rest and set `drained`.

    A second signal ends the wait. `exit_seconds`: how long the server may take to end after that.
    """
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # in effect after the block, when the server is already ending
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            break
        fleet.drain()
        _log.info("stopping; %d requests may continue for %.0f s", fleet.num_active, max(grace_seconds, delay_seconds))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_next, signals, nursery.cancel_scope)
            await wait_drained(fleet, streams, grace_seconds=grace_seconds, delay_seconds=delay_seconds)
            nursery.cancel_scope.cancel()
        fleet.end("the server is shutting down")
        drained.set()
        _exit_anyway(exit_seconds)


async def wait_drained(fleet: Fleet, streams: ResumableStreams, *, grace_seconds: float, delay_seconds: float) -> None:
    """Wait until all requests have ended, but at least `delay_seconds`, and at most `grace_seconds` if that is more.

    A resumable stream has ended when a client has got its end, or when nobody has come back for it in time.
    During the delay the server still answers, so that load balancers notice that it is draining before it is gone.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, delay_seconds)
        with trio.move_on_after(max(grace_seconds, delay_seconds)):
            await fleet.wait_idle()
            await streams.wait_read()


def _exit_anyway(seconds: float) -> None:
    """Exit after this time at the latest: Hypercorn waits forever for a client that does not read."""
    watchdog = threading.Timer(seconds, os._exit, [0])
    watchdog.daemon = True
    watchdog.start()


async def _cancel_on_next(signals: AsyncIterable[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
