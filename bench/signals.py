"""Signals that stop a measurement, so that its servers are stopped too."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from bench.records import BenchError


@asynccontextmanager
async def until_signal(print_line: Callable[[str], object]) -> AsyncIterator[trio.CancelScope]:
    """SIGINT, SIGTERM and SIGHUP cancel the body and do not end the program, so that servers are stopped."""
    error: Exception | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            inside = trio.CancelScope()

            async def listen() -> None:
                async for number in signals:
                    print_line(f"{signal.Signals(number).name}: stopping the servers")
                    inside.cancel()

            nursery.start_soon(listen)
            with inside:
                try:
                    yield inside
                except (BenchError, OSError) as raised:
                    error = raised  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
