"""`python -P -m scheduler FD CONFIG`: an engine on an inherited Unix socket, started and supervised by the API."""

import logging
import signal
import socket
import sys

import orjson

from scheduler.config import EngineConfig
from scheduler.link import Link
from scheduler.messages import Failed, Ready


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("llama.cpp").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the API stops the engine
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    config = EngineConfig(**orjson.loads(sys.argv[2]))

    # Imported after the link has started: it ends this process if the API dies while llama.cpp is loading.
    from scheduler.engine import Engine
    from scheduler.errors import ModelError, NoMemoryError
    from scheduler.llama.load import load

    try:
        parts = load(config)
    except ModelError as error:
        link.send(Failed(str(error), error.missing_bytes if isinstance(error, NoMemoryError) else 0))
        link.flush(5.0)
        return 1
    link.send(Ready(parts.info))
    Engine(parts.scheduler, parts.runner, parts.compiler, link, parts.embedder).run()
    link.flush(5.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
