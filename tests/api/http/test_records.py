"""Each request is reported once, with all its stations, however it ends."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.serving.observer import Observers, RequestRecord
from api.text.tokenizer import Tokenizer
from scheduler.messages import Embed, Embedded, Output, Step
from tests.api.fakes import INFO, MODEL, Server, chat, leave


class Reports:
    """Keeps all records, in the order of the requests' ends."""

    def __init__(self) -> None:
        self.open: list[RequestRecord] = []
        self.ended_: list[RequestRecord] = []

    def began(self, record: RequestRecord) -> None:
        self.open.append(record)

    def ended(self, record: RequestRecord) -> None:
        self.open.remove(record)
        self.ended_.append(record)

    @property
    def only(self) -> RequestRecord:
        assert not self.open
        [record] = self.ended_
        return record


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def server(tokenizer: Tokenizer, reports: Reports) -> Server:
    return Server(tokenizer, observers=Observers(reports))


async def test_all_stations_of_a_stream(server: Server, reports: Reports, autojump_clock: MockClock) -> None:
    tokens = server.encode("One two three")
    headers = {"x-request-id": "mine", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    begun = trio.current_time()
    async with server.stream(chat(user="ann", model="an-alias"), headers=headers) as stream:
        await server.engine.wait_active()
        [record] = reports.open
        await trio.sleep(2)
        [submit] = server.engine.submitted
        output = Output(submit.request_id, tokens[:1], cached_tokens=3, queue_seconds=0.5)
        server.engine.on_message(Step([output]))
        await wait_all_tasks_blocked()
        assert (record.answer_tokens, record.finish) == (1, ""), "an open record can be read"
        await trio.sleep(0.35)
        server.engine.emit(tokens[1:], "length")
        await stream.rest()
    assert reports.only is record
    assert (record.request_id, record.operation, record.model) == ("mine", "chat_completions", MODEL)
    assert (record.tenant, record.traceparent) == ("user:ann", headers["traceparent"])
    assert (record.status, record.finish, record.error) == (200, "length", "")
    assert record.submitted is not None
    assert record.first_output is not None
    assert record.first_output - begun == pytest.approx(2)
    assert record.last_output == record.ended == pytest.approx(begun + 2.35)
    assert (record.queue_seconds, record.num_sequences) == (0.5, 1)
    assert (record.prompt_tokens, record.cached_tokens) == (len(submit.tokens), 3)
    assert record.answer_tokens == len(tokens)
    assert sum(record.gaps) == len(tokens) - 1
    assert record.gap_seconds == pytest.approx(0.35)


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_protocol_reports_its_tokens(server: Server, reports: Reports, url: str, stream: bool) -> None:
    server.url = url
    server.answers("Fine.")
    messages = {"messages": chat()["messages"], "max_tokens": 9}
    body = {"/v1/completions": {"prompt": "Hello"}, "/v1/responses": {"input": "Hello"}}.get(url, messages)
    response = await server.post({"model": MODEL, "stream": stream} | body)
    await response.get_data(as_text=False)
    record = reports.only
    assert (record.status, record.finish, record.answer_tokens) == (200, "stop", len(server.encode("Fine.")))
    assert record.prompt_tokens == len(server.engine.submitted[0].tokens)


async def test_answers_that_a_stop_string_cuts_count_their_own_tokens(server: Server, reports: Reports) -> None:
    server.answers("One two three four", "length")
    response = await server.post(chat(stop=" three", n=2))
    usage = (await response.get_json())["usage"]
    assert (reports.only.answer_tokens, reports.only.num_sequences) == (usage["completion_tokens"], 2)
    assert reports.only.prompt_tokens == usage["prompt_tokens"]
    assert reports.only.finish == "stop"


async def test_embeddings_are_reported(server: Server, reports: Reports) -> None:
    server.engine.info = replace(INFO, pooling="mean", embedding_size=1, max_text_tokens=64)
    server.engine.embedded = lambda embed: [_embedded(embed)]
    server.url = "/v1/embeddings"
    response = await server.post({"model": MODEL, "input": ["Hello", "you there"], "encoding_format": "base64"})
    usage = (await response.get_json())["usage"]
    record = reports.only
    assert (record.operation, record.model, record.finish) == ("embeddings", MODEL, "stop")
    assert (record.prompt_tokens, record.num_sequences, record.answer_tokens) == (usage["prompt_tokens"], 2, 0)
    assert record.first_output is None
    assert record.last_output is not None


def _embedded(embed: Embed) -> Embedded:
    return Embedded(embed.request_id, ["AACAPw=="] * len(embed.texts))


@pytest.mark.parametrize(
    ("body", "status", "error", "model"),
    [
        (b"{", 400, "", ""),
        (chat(model="unknown"), 404, "model_not_found", ""),
        (chat(temperature=-1), 400, "invalid_value", ""),
        (chat(max_tokens=5, min_tokens=6), 400, "invalid_value", MODEL),
        (chat(n=100), 400, "invalid_value", MODEL),
    ],
)
async def test_refused_requests_are_reported(
    server: Server, reports: Reports, body: Any, status: int, error: str, model: str
) -> None:
    response = await server.post(body)
    record = reports.only
    assert (response.status_code, record.status, record.finish) == (status, status, "refused")
    assert (record.error, record.model) == (error, model)
    assert record.submitted is None


@pytest.mark.parametrize("stream", [False, True])
async def test_the_failure_of_an_engine_is_reported(server: Server, reports: Reports, stream: bool) -> None:
    server.engine.answer = lambda submit: [Output(submit.request_id, [], "error", error="broken")]
    response = await server.post(chat(stream=stream))
    await response.get_data(as_text=False)
    record = reports.only
    assert (record.finish, record.error) == ("error", "internal_error")
    assert record.status == response.status_code == (200 if stream else 500)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_reported(
    server: Server, reports: Reports, stream: bool, autojump_clock: MockClock
) -> None:
    connection = server.connect()
    async with connection:
        await connection.send(orjson.dumps(chat(stream=stream)))
        await connection.send_complete()
        await server.engine.wait_active()
        server.engine.emit(server.encode("One"))
        await wait_all_tasks_blocked()
        await leave(connection)
    record = reports.only
    assert (record.finish, record.status) == ("cancelled", 200 if stream else 499)
    assert record.answer_tokens == 1


async def test_a_client_that_leaves_before_its_body_is_complete_is_reported(server: Server, reports: Reports) -> None:
    connection = server.connect()
    async with connection:
        await connection.send(b"{")
        await wait_all_tasks_blocked()
        await leave(connection)
    assert (reports.only.finish, reports.only.status, reports.only.operation) == ("cancelled", 499, "chat_completions")


@pytest.mark.parametrize("path", ["/health", "/healthz", "/v1/models", "/nowhere"])
async def test_probes_and_unknown_urls_are_not_reported(server: Server, reports: Reports, path: str) -> None:
    await server.client.get(path)
    assert reports.ended_ == reports.open == []
