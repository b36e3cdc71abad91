"""`python -P -m scheduler FD CONFIG RECORD`: an engine, started and supervised by the API.

FD is an inherited Unix socket, RECORD the file descriptor of the engine's crash record.
"""

import logging
import os
import signal
import socket
import sys

import orjson

from scheduler import garbage, logs
from scheduler.config import EngineConfig
from scheduler.crash_record import EXIT_CRASHED, CrashRecord
from scheduler.failures import describe
from scheduler.link import Link
from scheduler.messages import Failed, Ready

_log = logging.getLogger("cortex.engine")


def main() -> int:
    config = EngineConfig(**orjson.loads(sys.argv[2]))
    logs.configure(config.log_format)
    logging.getLogger("llama.cpp").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the API stops the engine
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    record = CrashRecord(int(sys.argv[3]))
    link = Link(socket.socket(fileno=int(sys.argv[1])), record)
    try:
        code = _serve(config, link, record)
    except BaseException as error:  # llguidance's panics are no Exceptions
        record.explain(describe(error))
        _log.critical("the engine ends because of an exception", exc_info=True)
        code = EXIT_CRASHED
    link.flush(5.0)
    return code


def _serve(config: EngineConfig, link: Link, record: CrashRecord) -> int:
    # Imported after the link has started: it ends this process if the API dies while llama.cpp is loading.
    with garbage.imports():
        from scheduler.engine import Engine
        from scheduler.errors import ModelError, NoMemoryError
        from scheduler.llama.aborts import report_aborts
        from scheduler.llama.load import load
        from scheduler.outbox import Outbox

    report_aborts(record)
    try:
        parts = load(config)
    except ModelError as error:
        link.send(Failed(str(error), error.missing_bytes if isinstance(error, NoMemoryError) else 0))
        return 1
    if parts.publisher is not None:
        parts.publisher.start()
    link.send(Ready(parts.info))
    outbox = Outbox(config.stream_interval)
    Engine(parts.scheduler, parts.runner, parts.compiler, link, parts.embedder, record, parts.elastic, outbox).run()
    if parts.publisher is not None:
        parts.publisher.close()
    return 0


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    os._exit(exit_code)  # does not wait for the threads that compile grammars
