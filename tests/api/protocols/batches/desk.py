"""A server that runs batches over a fake engine, and clients that upload files and read results."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import orjson
import trio

from api.http.app import server_of
from api.http.operations import BATCH_ENDPOINTS
from api.protocols.batches.runner import BatchRunner, Tenants
from api.storage.batch import Batch
from api.storage.batches import BatchStore
from api.storage.storage import Storage
from api.tenants.tenant import Tenant
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Submit
from tests.api.fakes import MODEL, Server

P = ParamSpec("P")
T = TypeVar("T")
CHAT = "/v1/chat/completions"


class Clock:
    """Seconds since the epoch, which follow trio's clock."""

    def __init__(self) -> None:
        self._start = trio.current_time()

    def __call__(self) -> float:
        return 1_000_000.0 + trio.current_time() - self._start


def line(custom_id: str, text: str = "Hello", *, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8} | fields
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(lines: Iterable[object]) -> bytes:
    return b"".join(each if isinstance(each, bytes) else orjson.dumps(each) + b"\n" for each in lines)


def anybody(keeper: str, name: str) -> Tenant | None:
    return Tenant(name)


class InlineStorage(Storage):
    """Calls the disk without threads: while one of them works, virtual time would pass."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args, **kwargs)


class Desk:
    """One life of a server in a folder. Several lives may follow each other."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, tenants: Tenants = anybody, **options: Any) -> None:
        clock = Clock()
        self.storage = InlineStorage(folder)
        self.storage.batches = BatchStore(self.storage.database, now=clock)
        self.server = Server(tokenizer, storage=self.storage, **options)
        self.engine = self.server.engine
        self.runner = BatchRunner(server_of(self.server.app), self.storage, BATCH_ENDPOINTS, tenants, now=clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The runner runs during the block. Its end is as sudden as the end of the process."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.runner.run)
            yield
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        self.storage.close()

    def upload(self, lines: Iterable[object], owner: str = "") -> str:
        upload = self.storage.files.begin(owner, "input.jsonl", "batch")
        upload.write(jsonl(lines))
        return upload.finish().id

    def create(self, lines: Iterable[object], endpoint: str = CHAT, owner: str = "") -> Batch:
        file = self.upload(lines, owner)
        return self.storage.batches.create(owner, "user:ann", endpoint, file, None, None)

    def batch(self, batch: Batch) -> Batch:
        return self.storage.batches.by_number(batch.number)

    async def ended(self, batch: Batch, seconds: float = 25 * 3600) -> Batch:
        return await self.until(batch, lambda now: now.is_over, seconds)

    async def until(self, batch: Batch, condition: Callable[[Batch], bool], seconds: float = 3600) -> Batch:
        with trio.fail_after(seconds):
            pause = 0.1
            while not condition(now := self.batch(batch)):
                await trio.sleep(pause)
                pause = min(2 * pause, 300.0)
        return now

    def results(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output file and of the error file."""
        return self._read(batch, batch.output_file), self._read(batch, batch.error_file)

    def _read(self, batch: Batch, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        file = self.storage.files.get(batch.owner, file_id)
        assert file is not None
        return [orjson.loads(each) for each in self.storage.files.path(file).read_bytes().splitlines()]

    def prompt(self, submit: Submit) -> str:
        return self.server.tokenizer.text(submit.tokens)

    def answers_each(self, answer: Callable[[str], str | None]) -> None:
        """Every prompt gets this text at once; one without a text stays open."""

        def outputs(submit: Submit) -> list[Output]:
            text = answer(self.prompt(submit))
            return [] if text is None else [Output(submit.request_id, self.server.encode(text), "stop")]

        self.engine.answer = outputs


def text_of(result: dict[str, Any]) -> str:
    """The answer of a chat in an output line."""
    return str(result["response"]["body"]["choices"][0]["message"]["content"])
