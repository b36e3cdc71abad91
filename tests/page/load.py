"""Load on a server, from `python -m bench load`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.api.servers import SECONDS


@contextmanager
def load(url: str, *options: str, key: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Runs the load during the block, and ends it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "load", "--url", url, *options],
        env=os.environ | {"BENCH_API_KEY": key},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)
