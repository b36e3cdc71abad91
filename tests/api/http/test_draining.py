"""The end of a server: how long it waits, and what it answers meanwhile."""

import signal
from pathlib import Path
from typing import Final

import httpx
import orjson
import pytest
import trio
from trio.testing import MockClock

from api.http.draining import wait_drained
from api.text.tokenizer import Tokenizer
from scheduler.messages import Submit
from tests.api.fakes import MODEL, Server, chat
from tests.api.servers import SECONDS, CortexServer, wait_until

GRACE: Final = 30.0


@pytest.mark.parametrize(
    ("request_seconds", "delay", "waited"),
    [(0, 0, 0), (0, 5, 5), (3, 0, 3), (3, 5, 5), (8, 5, 8), (90, 0, GRACE), (90, 5, GRACE), (90, 40, 40), (35, 40, 40)],
)
async def test_it_waits_for_requests_and_for_the_delay(
    tokenizer: Tokenizer, autojump_clock: MockClock, request_seconds: float, delay: float, waited: float
) -> None:
    server = Server(tokenizer)
    server.fleet.drain()
    start = trio.current_time()

    async def run() -> None:
        with server.engine.generate([Submit(server.engine.next_id(), [1], 1)]):
            await trio.sleep(request_seconds)

    async with trio.open_nursery() as nursery:
        if request_seconds:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
        await wait_drained(server.fleet, server.streams, grace_seconds=GRACE, delay_seconds=delay)
        assert trio.current_time() - start == pytest.approx(waited)
        nursery.cancel_scope.cancel()


async def test_requests_that_are_being_prepared_are_waited_for(tokenizer: Tokenizer, autojump_clock: MockClock) -> None:
    server = Server(tokenizer)
    start = trio.current_time()

    async def run() -> None:
        with server.service.admission.enter() as place:
            await trio.sleep(2)
            with server.engine.generate([Submit(server.engine.next_id(), [1], 1)]):
                place.release()
                await trio.sleep(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        await wait_drained(server.fleet, server.streams, grace_seconds=GRACE, delay_seconds=0)
        assert trio.current_time() - start == pytest.approx(5)


async def test_answers_while_draining_close_the_connection(tokenizer: Tokenizer) -> None:
    """A client with a pool of connections then opens another one, perhaps to another server."""
    server = Server(tokenizer)
    server.answers("Fine.")
    assert "Connection" not in (await server.post(chat())).headers
    server.fleet.drain()
    for path in ("/health", "/v1/models"):
        assert (await server.client.get(path)).headers["Connection"] == "close"
    assert (await server.post(chat())).headers["Connection"] == "close"


@pytest.mark.parametrize("model", [MODEL, "unknown"])
async def test_new_requests_are_refused_in_the_form_of_their_api(tokenizer: Tokenizer, model: str) -> None:
    """It does not look for the model any more, so it cannot say that there is none."""
    server = Server(tokenizer)
    server.fleet.drain()
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "prompt": "Hi"}
    fields = {
        "/v1/chat/completions": ("model", "messages"),
        "/v1/completions": ("model", "prompt"),
        "/v1/messages": ("model", "messages", "max_tokens"),
    }
    for path, names in fields.items():
        response = await server.client.post(path, data=orjson.dumps({name: body[name] for name in names}))
        found = orjson.loads(await response.get_data(as_text=False))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert (found.get("type") == "error") == (path == "/v1/messages")
        assert "shutting down" in found["error"]["message"]


def test_a_server_without_requests_answers_during_the_delay(tmp_path: Path) -> None:
    with CortexServer(tmp_path, f"--drain-delay={10 * SECONDS}", "--grace=0", "--ctx-len=256") as server:
        url = f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503, "the server drains")
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        refused = httpx.post(f"{url}/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        server.process.send_signal(signal.SIGTERM)  # the second signal ends the delay
        assert server.process.wait(SECONDS) == 0
        assert "Traceback" not in server.log
