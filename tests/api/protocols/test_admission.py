"""How many sequences may run and wait: they are counted from the arrival of their request."""

import contextlib

import orjson
import pytest
import trio
from quart import Response
from trio.testing import wait_all_tasks_blocked

from api.serving.prompts import Prompt, PromptBuilder
from api.serving.spec import Conversation, Texts
from api.text.tokenizer import Tokenizer
from scheduler.messages import Submit
from tests.api.fakes import INFO, MODEL, Server, chat, leave


async def assert_error(response: Response, status: int, code: str, param: str | None = None, part: str = "") -> None:
    error = orjson.loads(await response.get_data(as_text=False))["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert part in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sequences_of_a_request_count_before_it_is_accepted(tokenizer: Tokenizer, stream: bool) -> None:
    """With room for two sequences, `n` may be 2. A request for more than ever fit is a 400, because waiting is vain."""
    server = Server(tokenizer, max_waiting=2)
    limit = INFO.max_seqs + 2
    generations = [server.engine.generate([Submit(server.engine.next_id(), [1], 1)]) for _ in range(limit - 2)]
    with contextlib.ExitStack() as running:
        for generation in generations:
            running.enter_context(generation)
        for n in (3, limit):
            await assert_error(await server.post(chat(n=n, stream=stream)), 429, "rate_limit_exceeded")
        await assert_error(
            await server.post(chat(n=limit + 1, stream=stream)), 400, "invalid_value", "n", f"at most {limit}"
        )
        server.url = "/v1/completions"
        prompts = {"model": MODEL, "prompt": ["a", "b", "c"], "stream": stream}
        await assert_error(await server.post(prompts), 429, "rate_limit_exceeded")
        prompts["prompt"] = ["a"] * (limit + 1)
        await assert_error(await server.post(prompts), 400, "invalid_value", "prompt", f"for {limit + 1} completions")
        server.answers()
        prompts["prompt"] = ["a", "b"]
        assert (await server.post(prompts)).status_code == 200
        assert server.engine.num_active == limit - 2


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_that_arrive_together_do_not_exceed_the_bound(tokenizer: Tokenizer, stream: bool) -> None:
    """Each is counted from its arrival, not only once its prompt is tokenized and its answer begins."""
    server = Server(tokenizer, max_waiting=0)
    server.service.prompts.build = held = HeldPrompts(server.service.prompts)  # type: ignore[method-assign]
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await server.post(chat(n=2, stream=stream))).status_code)

    server.answers()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert statuses == [429] * (10 - INFO.max_seqs // 2)
        held.go.set()
    assert sorted(statuses) == [200] * (INFO.max_seqs // 2) + [429] * (10 - INFO.max_seqs // 2)
    assert server.engine.num_active == 0
    assert (await server.post(chat(n=INFO.max_seqs, stream=stream))).status_code == 200, "all places are free again"


class HeldPrompts:
    """Makes prompts as soon as `go` is set."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.go = trio.Event()
        self._build = prompts.build

    async def __call__(self, prompt: Conversation | Texts) -> list[Prompt]:
        await self.go.wait()
        return await self._build(prompt)


async def test_a_refused_or_abandoned_request_gives_its_place_back(tokenizer: Tokenizer) -> None:
    server = Server(tokenizer, max_waiting=0)
    everything = INFO.max_seqs
    for _ in range(3):
        await assert_error(
            await server.post(chat("word " * INFO.ctx_len, n=everything)), 400, "context_length_exceeded", "messages"
        )
        async with server.stream(chat(n=everything)) as stream:
            await stream.leave()
        connection = server.connect()
        async with connection:
            await connection.send(orjson.dumps(chat(n=everything)))
            await connection.send_complete()
            await wait_all_tasks_blocked()
            await leave(connection)
    server.answers()
    assert (await server.post(chat(n=everything))).status_code == 200
