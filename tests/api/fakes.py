"""A fake engine with scripted outputs, and a client that reads a stream chunk by chunk."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import trio
from quart import Response
from quart_trio import QuartTrio
from quart_trio.testing.connections import TestHTTPConnection as Connection
from trio.testing import wait_all_tasks_blocked

from api.engine.client import EngineClient
from api.engine.process import EngineLauncher
from api.flags import ModelOptions
from api.http.access import Access
from api.http.app import create_app
from api.models.defaults import ModelDefaults
from api.protocols.answer import PING_SECONDS
from api.protocols.call import NO_STORAGE
from api.protocols.resumable import MAX_STREAMS, ResumableStreams
from api.serving.fleet import Fleet
from api.serving.limits import Limiter
from api.serving.live import Hub
from api.serving.observer import Observers
from api.serving.service import ModelService
from api.storage.storage import Storage
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig, EngineInfo
from scheduler.messages import Cancel, Embed, Embedded, Message, Output, Report, Step, Submit

MODEL = "smollm2:135m"
URL = "/v1/chat/completions"
PATH = Path("/models/no-model.gguf")
INFO = EngineInfo(
    pid=4321,
    description="fake 1B",
    ctx_len=512,
    max_seqs=4,
    kv_tokens=2048,
    kv_bytes=1 << 20,
    kv_layout="pool",
    kv_layout_reason="as asked",
    batch_tokens=128,
    threads=1,
    host_cache=0,
    disk_cache=0,
    gpu_layers=0,
    load_seconds=0.5,
)


class FakeEngine(EngineClient):
    """Records posted messages. Outputs come from `emit`, or from `answer` as soon as a request is submitted."""

    info: EngineInfo | None = INFO

    def __init__(self) -> None:
        super().__init__(EngineLauncher(EngineConfig("no-model.gguf")))
        self.posted: list[Message] = []
        self.answer: Callable[[Submit], list[Output]] | None = None
        self.embedded: Callable[[Embed], list[Embedded]] | None = None
        """Returns the embeddings of a request's texts, as soon as the request is posted."""
        self.report: Report | None = None
        self._arrival = trio.Event()

    def _post(self, message: Message) -> None:
        self.posted.append(message)
        self._arrival.set()
        self._arrival = trio.Event()
        if self.answer is not None and isinstance(message, Submit):
            self.on_message(Step(self.answer(message)))
        if self.embedded is not None and isinstance(message, Embed):
            for embedded in self.embedded(message):
                self.on_message(embedded)

    async def wait_active(self) -> None:
        """Waits until a request has been submitted and has not ended. A thread may make its grammar first."""
        with trio.fail_after(2 * PING_SECONDS):
            while not self.num_active:
                await self._arrival.wait()

    async def inspect(self) -> Report | None:
        return self.report

    @property
    def submitted(self) -> list[Submit]:
        return [message for message in self.posted if isinstance(message, Submit)]

    @property
    def cancelled(self) -> list[int]:
        return [message.request_id for message in self.posted if isinstance(message, Cancel)]

    def emit(
        self,
        tokens: Sequence[int],
        finish_reason: str | None = None,
        *,
        request_id: int | None = None,
        cached_tokens: int = 0,
        error: str | None = None,
    ) -> None:
        """Sends one step's output for a request, by default the last one submitted."""
        request_id = self.submitted[-1].request_id if request_id is None else request_id
        self.on_message(Step([Output(request_id, list(tokens), finish_reason, cached_tokens, error)]))

    def die(self) -> None:
        """Acts as if no engine could be started any more."""
        self.info = None
        self.on_failure("it is broken")


class Stream:
    """A response that is read as it arrives."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._read: list[Any] = []
        """Events of the last write that the test has not read yet."""

    @property
    def status(self) -> int | None:
        return self.connection.status_code

    @property
    def headers(self) -> Any:
        return self.connection.headers

    async def write(self) -> bytes | None:
        """The bytes of one write by the server, or None at the end of the body."""
        with trio.fail_after(2 * PING_SECONDS):
            while True:
                try:
                    data = await self.connection.receive()
                except trio.EndOfChannel:
                    return None
                if data:
                    return data

    async def chunk(self) -> dict[str, Any]:
        """The next event."""
        if not self._read:
            data = await self.write()
            assert data is not None
            self._read = events(data)
        event = self._read.pop(0)
        assert isinstance(event, dict)
        return event

    async def text(self) -> str:
        """The text of the next event, which must be a content chunk."""
        [choice] = (await self.chunk())["choices"]
        assert set(choice["delta"]) == {"content"}
        return str(choice["delta"]["content"])

    async def rest(self) -> list[Any]:
        """All events up to the end of the body."""
        data = b""
        while (more := await self.write()) is not None:
            data += more
        return self._read + (events(data) if data else [])

    async def leave(self) -> None:
        """Disconnects as a client that hangs up. Data that was not read is lost."""
        await leave(self.connection)


async def leave(connection: Connection) -> None:
    await connection.disconnect()
    await wait_all_tasks_blocked()
    connection._client_receive.close()  # else it waits for an end of body that a cancelled app never writes


def events(data: bytes) -> list[Any]:
    """Parses the events of a stream: JSON objects, `[DONE]` as a string, and pings as None.

    Asserts that the name of an event, if it has one, is the type of its object.
    """
    assert data.endswith(b"\n\n"), "only whole events are written"
    found: list[Any] = []
    for event in data[:-2].split(b"\n\n"):
        if event.startswith(b"event: "):
            name, _, payload = event.removeprefix(b"event: ").partition(b"\ndata: ")
            assert b"\n" not in payload
            found.append(orjson.loads(payload))
            assert found[-1]["type"] == name.decode()
            continue
        assert b"\n" not in event
        if event == b"data: [DONE]":
            found.append("[DONE]")
        elif event.startswith(b":"):
            found.append(None)
        else:
            assert event.startswith(b"data: {")
            found.append(orjson.loads(event.removeprefix(b"data: ")))
    return found


class Server:
    """The app with one model over a fake engine."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_waiting: int = 8,
        cors_origins: tuple[str, ...] = (),
        url: str = URL,
        defaults: ModelDefaults | None = None,
        observers: Observers | None = None,
        limiter: Limiter | None = None,
        request_timeout: float = 0.0,
        access: Access | None = None,
        max_streams: int = MAX_STREAMS,
        storage: Storage | str = NO_STORAGE,
    ) -> None:
        self.url = url
        """The path that requests are posted to."""
        self.engine = FakeEngine()
        names = MODEL, "an-alias"
        self.service = ModelService(names, tokenizer, self.engine, max_waiting=max_waiting, defaults=defaults)
        self.fleet = Fleet(max_waiting=max_waiting)
        self.fleet.adopt(ModelOptions(MODEL, PATH, EngineConfig(str(PATH)), ("an-alias",)), self.service)
        self.streams = ResumableStreams(max_streams=max_streams)
        self.live = Hub(self.fleet, by_tenant=access is not None and access.demands_keys)
        self.app: QuartTrio = create_app(
            self.fleet,
            cors_origins=cors_origins,
            observers=observers,
            limiter=limiter,
            request_timeout=request_timeout,
            access=access,
            streams=self.streams,
            live=self.live,
            storage=storage,
        )
        self.client = self.app.test_client()
        self.tokenizer = tokenizer
        self.url = url

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, parse_special=False)

    def answers(self, text: str = "Fine.", finish_reason: str = "stop") -> None:
        """From now on, every request gets this text at once, with log probabilities if it asks for them."""
        tokens = self.encode(text)

        def answer(submit: Submit) -> list[Output]:
            output = Output(submit.request_id, list(tokens), finish_reason)
            if submit.logprobs is not None:
                output.logprobs = [(-0.5, [(token, -0.5)] * submit.logprobs) for token in tokens]
            if submit.score_prompt:
                output.prompt_logprobs = [(-0.5, []) for _ in submit.tokens[1:]]
            return [output]

        self.engine.answer = answer

    async def post(self, body: Any, headers: dict[str, str] | None = None) -> Response:
        return await self.post_raw(body if isinstance(body, bytes) else orjson.dumps(body), headers)

    async def post_raw(self, data: bytes, headers: dict[str, str] | None = None) -> Response:
        with trio.fail_after(2 * PING_SECONDS):
            return await self.client.post(
                self.url, data=data, headers={"Content-Type": "application/json"} | (headers or {})
            )

    def connect(self, headers: dict[str, str] | None = None) -> Connection:
        """A POST whose body is not sent yet."""
        connection = self.client.request(self.url, method="POST", headers=headers)
        assert isinstance(connection, Connection)
        return connection

    @asynccontextmanager
    async def stream(self, body: dict[str, Any], *, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
        """A streamed request. A test that exits the block early must call `leave` on the stream first."""
        connection = self.connect(headers)
        async with connection:
            await connection.send(orjson.dumps(body | {"stream": True}))
            await connection.send_complete()
            yield Stream(connection)


def chat(text: str = "Hello", /, **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields
