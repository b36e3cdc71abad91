"""How requests find a node, and what happens when it ends. The nodes are scripts of pieces."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

import orjson
import pytest

from deploy.ray import relay
from deploy.ray.errors import TOO_LARGE, error_body
from deploy.ray.headers import first
from deploy.ray.node import Call, Head, NodeGoneError, Piece
from deploy.ray.relay import Pieces, Relay, refusal

SSE = Head(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
JSON = Head(200, ((b"content-type", b"application/json"),))
CALL = Call("POST", "/v1/chat/completions", (), b"{}")


class ActorDiedError(Exception):
    """As Ray's."""


class Script:
    """Gives pieces, raises errors, or waits forever."""

    def __init__(self, *pieces: Piece | Exception | str) -> None:
        self._pieces = iter(pieces)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        piece = next(self._pieces, StopAsyncIteration())
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, str):
            await asyncio.Event().wait()
            raise AssertionError
        return piece

    def cancel(self) -> None:
        self.cancelled = True


def answers(*scripts: Script, call: Call = CALL) -> tuple[Head, list[bytes]]:
    """What the client gets if the calls meet these scripts, one after the other."""
    waiting = iter(scripts)

    def ask(asked: Call) -> Pieces:
        assert asked is call
        return next(waiting)

    async def run() -> tuple[Head, list[bytes]]:
        head, body = await Relay(ask, (ActorDiedError,)).open(call)
        return head, [piece async for piece in body]

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PAUSE_SECONDS", 0.0)


def test_an_answer_passes_piece_by_piece() -> None:
    assert answers(Script(None, SSE, b"data: 1\n\n", b"data: 2\n\n")) == (SSE, [b"data: 1\n\n", b"data: 2\n\n"])


@pytest.mark.parametrize("error", [NodeGoneError(), ActorDiedError()])
@pytest.mark.parametrize("accepted", [True, False])
def test_another_node_is_asked_if_one_ends_before_its_answer(error: Exception, accepted: bool) -> None:
    first_node = Script(None, error) if accepted else Script(error)
    assert answers(first_node, Script(None, JSON, b"{}")) == (JSON, [b"{}"])


def test_without_any_node_the_client_may_retry() -> None:
    head, body = answers(*(Script(ActorDiedError()) for _ in range(relay.ATTEMPTS)))
    assert head.status == 503
    assert first(head.headers, b"retry-after") == relay.RETRY_AFTER
    assert orjson.loads(b"".join(body))["error"]["code"] == "node_unavailable"


def test_a_request_that_no_node_takes_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ACCEPT_SECONDS", 0.01)
    waiting = Script("forever")
    assert answers(waiting)[0].status == 503
    assert waiting.cancelled


def test_a_stream_whose_node_ends_gets_an_error_as_its_last_event() -> None:
    _, body = answers(Script(None, SSE, b"data: 1\n\n", ActorDiedError()))
    assert body[0] == b"data: 1\n\n"
    name, data = body[1].split(b": ", 1)
    assert name == b"data"
    assert orjson.loads(data)["error"]["type"] == "server_error"


def test_anthropic_streams_get_an_error_in_their_form() -> None:
    call = Call("POST", "/v1/messages?beta=true", (), b"{}")
    _, (event,) = answers(Script(None, SSE, NodeGoneError()), call=call)
    lines = event.splitlines()
    assert lines[0] == b"event: error"
    assert orjson.loads(lines[1].removeprefix(b"data: "))["error"]["type"] == "api_error"


def test_another_body_whose_node_ends_breaks() -> None:
    with pytest.raises(NodeGoneError):
        answers(Script(None, JSON, b"{", NodeGoneError()))


def test_a_client_that_leaves_cancels_the_request() -> None:
    script = Script(None, SSE, b"data: 1\n\n", "forever")

    async def leave() -> None:
        _, body = await Relay(lambda call: script).open(CALL)

        async def read() -> None:
            async for _ in body:
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.01)

    asyncio.run(leave())
    assert script.cancelled


def test_a_client_that_leaves_before_the_answer_cancels_the_request() -> None:
    script = Script(None, "forever")

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Relay(lambda call: script).open(CALL), 0.01)

    asyncio.run(leave())
    assert script.cancelled


def test_errors_have_the_form_of_the_protocol() -> None:
    too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    openai = orjson.loads(error_body("/v1/responses", too_large, TOO_LARGE))["error"]
    assert (openai["type"], openai["code"], openai["message"]) == (
        "invalid_request_error",
        "request_too_large",
        TOO_LARGE,
    )
    anthropic = orjson.loads(error_body("/v1/messages", too_large, TOO_LARGE))
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "request_too_large")
    head, _ = refusal("/v1/messages", too_large, TOO_LARGE)
    assert head.status == 413
    assert first(head.headers, b"retry-after") is None
