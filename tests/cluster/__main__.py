"""Starts SMG and two nodes, and uses them as clients do: `python -m tests.cluster CORTEX SMG`.

Prints a line for each use. Exits with 1 if one failed.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from anthropic import Anthropic
from openai import OpenAI

from tests.cluster.uses import ANTHROPIC_USES, OPENAI_USES

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 120.0
NODES: Final = 2


@contextmanager
def cluster(cortex: str, smg: str, folder: Path) -> Iterator[str]:
    """Starts the script, and ends it as Ctrl-C does. Yields the router's address."""
    log = folder / "log"
    port = free_ports()
    environment = os.environ | {"CORTEX": cortex, "SMG": smg, "CLUSTER": str(folder), "PORT": str(port)}
    with log.open("wb") as file:
        # The embedded model has no pooling of its own, and the context bounds the answers without a limit.
        command = [str(ROOT / "deploy" / "cluster.sh"), "--pooling", "mean", "--ctx-len", "512"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the cluster does not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def free_ports() -> int:
    """A port such that it, those of the nodes behind it, and that of SMG's metrics are free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
        try:
            for each in (*range(port, port + NODES + 1), port + 100):
                socket.create_server(("127.0.0.1", each)).close()
        except (OSError, OverflowError):
            continue
        return port


def is_ready(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/readiness", trust_env=False).json()
    except (httpx.TransportError, ValueError):
        return False
    return isinstance(answer, dict) and answer.get("healthy_workers") == NODES


def main() -> int:
    cortex, smg = (str(Path(argument).absolute()) for argument in sys.argv[1:3])
    failures = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(cortex, smg, Path(folder)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=0) as openai,
        Anthropic(base_url=url, auth_token="not-needed", max_retries=0) as anthropic,
    ):
        uses = [(use.__name__, partial(use, openai)) for use in OPENAI_USES]
        uses += [(use.__name__, partial(use, anthropic)) for use in ANTHROPIC_USES]
        for name, use in uses:
            try:
                use()
            except Exception as error:
                failures += 1
                print(f"FAILED  {name.replace('_', ' ')}: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"ok      {name.replace('_', ' ')}", flush=True)
    print(f"{failures} of {len(uses)} failed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
