"""Runs the server: bind, load, serve, drain, end. The innermost block ends first."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from functools import partial
from typing import Final

import trio
from hypercorn.config import Config

from api.engine.spawn import Ahead
from api.errors import leaves, os_error_text
from api.flags import ModelOptions, ServerOptions, ServerSettings
from api.home import home
from api.http.adapter import adapted
from api.http.app import create_app, server_of
from api.http.clients import Clients
from api.http.connections import Listener, limits_of, serve_connections
from api.http.draining import drain_on_signal
from api.http.observers import TracingError, observing
from api.http.operations import BATCH_ENDPOINTS
from api.http.sockets import Listening, listening
from api.protocols.batches.runner import BatchRunner
from api.protocols.call import NO_STORAGE
from api.protocols.resumable import ResumableStreams
from api.record import AlreadyRunningError, hold_record
from api.serving import salts
from api.serving.fleet import Fleet, StartError
from api.serving.limits import Limiter
from api.serving.observer import Observers
from api.serving.request_log import RequestContext
from api.storage.errors import StorageError
from api.storage.quota import Quota
from api.storage.storage import Storage
from api.tenants.errors import TenantsError
from api.tenants.tenant import Limits
from scheduler import logs

_log = logging.getLogger("cortex.api")

FLUSH_SECONDS: Final = 5.0
"""Seconds at the end for connections to receive their last bytes."""
KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than clients keep idle connections. If the server closed one first, it could lose a request just sent."""


def serve(options: ServerOptions, *, engine_command: tuple[str, ...] | None = None, ahead: Ahead | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code. An error that prevents serving is logged as one line."""
    logs.configure(options.log_format, RequestContext())
    exit_code = 0
    try:
        clients = Clients(options)
        with (
            listening(options) as address,
            observing(options) as observers,
            hold_record(options, address.port, address.certificate) as record,
        ):
            _log.info("listening at %s", record.base_url)
            with _storage(options) as storage:
                trio.run(_run, options, address, engine_command, ahead, observers, clients, storage)
    except* (AlreadyRunningError, StartError, TenantsError, TracingError, OSError) as errors:
        for error in leaves(errors):
            _log.error("%s", _os_error(error) if isinstance(error, OSError) else error)
        exit_code = 1
    return exit_code


def _os_error(error: OSError) -> str:
    """The error in one line. Python names no file if a write fails: then it is one of this server's own."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename
    return f"{home()}: {os_error_text(error)}" if is_full else os_error_text(error)


@contextlib.contextmanager
def _storage(options: ServerSettings) -> Iterator[Storage | str]:
    """Files and batches, or why there are none: the rest of the server works without them."""
    try:
        storage = Storage(home(), Quota(owner_bytes=options.tenant_files_size, all_bytes=options.files_size))
    except StorageError as error:
        _log.error("the server keeps no files and no batches: %s", error)
        yield f"{NO_STORAGE} Its log has the reason."
        return
    with contextlib.closing(storage):
        yield storage


async def _run(
    options: ServerOptions,
    address: Listening,
    engine_command: tuple[str, ...] | None,
    ahead: Ahead | None,
    observers: Observers,
    clients: Clients,
    storage: Storage | str,
) -> None:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn")
    config.graceful_timeout = FLUSH_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = 64 * 1024
    limits = limits_of(options.max_connections, options.max_connections_per_address)
    drained = trio.Event()
    fleet = Fleet(
        max_waiting=options.max_waiting,
        grace_seconds=options.grace_seconds,
        idle_limit=options.idle_limit,
        on_demand=options.on_demand,
        engine_command=engine_command,
        log_format=options.log_format,
        ahead=ahead,
    )
    streams = ResumableStreams()
    observers.add(clients.usage)
    app = create_app(
        fleet,
        cors_origins=options.cors_origins,
        model_flags=options.model_flags,
        observers=observers,
        limiter=_limiter(options),
        request_timeout=options.request_timeout,
        cache_scope=salts.resolved(options.cache_scope, demands_keys=options.demands_keys),
        access=clients.access,
        streams=streams,
        storage=storage,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                drain_on_signal,
                fleet,
                streams,
                drained,
                grace_seconds=options.grace_seconds,
                delay_seconds=options.drain_delay,
                exit_seconds=2 * FLUSH_SECONDS,
            )
        )
        nursery.start_soon(clients.run)
        await nursery.start(fleet.run)
        nursery.start_soon(_start_first, fleet, options.first)  # before batches go on, which may need other models
        await nursery.start(streams.run)
        if isinstance(storage, Storage):
            nursery.start_soon(storage.run)
            runner = BatchRunner(server_of(app), storage, BATCH_ENDPOINTS, clients.access.tenant_of)
            await nursery.start(runner.run)
        await serve_connections(adapted(app), config, _listeners(address), limits, shutdown=drained.wait)
        with trio.move_on_after(FLUSH_SECONDS):
            await fleet.close()
        nursery.cancel_scope.cancel()


def _listeners(address: Listening) -> list[Listener]:
    plain = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in address.sockets]
    if address.tls is None:
        return [*plain]
    return [trio.SSLListener(each, address.tls, https_compatible=True) for each in plain]


def _limiter(options: ServerSettings) -> Limiter:
    """The limits that the flags set."""
    return Limiter(
        total=Limits(
            concurrent=options.max_concurrent,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
        ),
        default=Limits(
            options.tenant_max_waiting,
            options.tenant_max_concurrent,
            options.tenant_requests_per_minute,
            options.tenant_tokens_per_minute,
        ),
    )


async def _start_first(fleet: Fleet, options: ModelOptions) -> None:
    """Start the first model. Raises StartError, unless the server is being stopped."""
    try:
        await fleet.start(options)
    except StartError:
        if not fleet.draining:
            raise
