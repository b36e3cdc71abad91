"""A server of files without models, in a process of its own: over real HTTP, and started in a second."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from openai import OpenAI

SERVE = """
import sys
from pathlib import Path
import trio
from hypercorn.config import Config
from api.http.adapter import adapted
from api.http.app import create_app
from api.http.connections import limits_of, serve_connections
from api.serving.fleet import Fleet
from api.storage.quota import Quota
from api.storage.storage import Storage

async def main():
    storage = Storage(Path(sys.argv[1]), Quota(all_bytes=2**30))
    app = create_app(Fleet(max_waiting=0), storage=storage)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await serve_connections(adapted(app), Config(), [listener], limits_of(100, 100), shutdown=trio.sleep_forever)

trio.run(main)
"""


class FileServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, self.folder],
            stdout=subprocess.PIPE,
            env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.client = OpenAI(base_url=self.url, api_key="none", max_retries=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def memory(self) -> int:
        """Bytes of its own memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def stored(self) -> set[str]:
        """The names of the files on its disk."""
        return {entry.name for entry in (self.folder / "files").iterdir()}
