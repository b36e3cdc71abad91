"""Limits, deadlines, queue positions and timings of a real server with a real engine."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import httpx
import orjson
import pytest

from tests.api.servers import MODEL, SECONDS, CortexServer, wait_until

FOREVER: Final = 8000
"""Tokens of an answer that outlasts everything else here."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    """One sequence runs, and a tenant may have three."""
    flags = ("--max-seqs=1", "--ctx-len=8192", "--kv-layout=pool", "--kv-tokens=8192", "--tenant-max-concurrent=3")
    with CortexServer(tmp_path_factory.mktemp("limited"), *flags, "--request-timeout=600") as server:
        yield server


@pytest.fixture
def client(server: CortexServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        yield client


def body(max_tokens: int = 3, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "user": "ada"} | fields


def test_a_waiting_stream_says_its_position(server: CortexServer, client: httpx.Client) -> None:
    """The requests are one tenant's, so none of them goes first because of its share."""
    with ExitStack() as streams:
        first = streams.enter_context(client.stream("POST", "/completions", json=body(FOREVER, stream=True)))
        running = first.iter_lines()  # its end would close the stream
        next(running)
        second = streams.enter_context(client.stream("POST", "/completions", json=body(stream=True)))
        third = streams.enter_context(client.stream("POST", "/completions", json=body(stream=True)))
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        waiting = third.iter_lines()
        assert next(line for line in waiting if line.startswith(": queued")) == ": queued 2"
        refused = client.post("/completions", json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        first.close()
        assert [line for line in second.iter_lines() if line][-1] == "data: [DONE]"
        assert [line for line in waiting if line][-1] == "data: [DONE]"
    wait_until(lambda: server.health()["running"] == 0, "everything has ended")
    response = client.post("/completions", json=body())
    assert (response.status_code, response.headers["x-ratelimit-remaining-requests"]) == (200, "3")


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_frees_everything(server: CortexServer, client: httpx.Client, stream: bool) -> None:
    late = client.post("/completions", json=body(FOREVER, stream=stream), headers={"X-Request-Timeout": "0.5"})
    last = orjson.loads([line for line in late.text.splitlines() if line][-1].removeprefix("data: "))
    assert (late.status_code, last["error"]["code"]) == (200 if stream else 504, "request_timeout")
    server.assert_nothing_is_held()
    assert client.post("/completions", json=body()).headers["x-ratelimit-remaining-requests"] == "3"


def test_timings_agree_with_the_usage(client: httpx.Client) -> None:
    answer = client.post("/completions", json=body(8, timings=True)).json()
    found, usage = answer["timings"], answer["usage"]
    assert found["cache_n"] + found["prompt_n"] == usage["prompt_tokens"]
    assert found["predicted_n"] == usage["completion_tokens"] == 8
    assert found["queue_ms"] >= 0
    assert min(found["prompt_ms"], found["predicted_ms"], found["predicted_per_second"]) > 0
